"""The command line: each command reads its flags, calls its part of the package, and shows what came of it.

Each stands in its own file, `info` in this one. Heavy imports stand inside the commands, so that `augserve --help`
is quick and serving needs no torch.
Exit status: 0 done, 1 failed (one line on stderr), 2 usage.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import augserve
from augserve.cli import show
from augserve.cli.bench import bench
from augserve.cli.convert import convert
from augserve.cli.export import export
from augserve.cli.predict import predict
from augserve.cli.serve import serve
from augserve.cli.train import train
from augserve.errors import AugserveError, ConfigurationError

DEBUG = "--debug"

app = typer.Typer(
    name="augserve",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG in given
    try:
        app([argument for argument in given if argument != DEBUG], prog_name="augserve")
    except AugserveError as error:
        _fail(str(error), 2 if isinstance(error, ConfigurationError) else 1, debug)
    except OSError as error:  # a full disk, a folder that may not be read: not ours to foresee, nor a defect
        _fail(str(error), 1, debug)
    except Exception as error:
        _fail(f"internal error: {type(error).__name__}: {error} (add {DEBUG} for the traceback)", 1, debug)


def _fail(message: str, status: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    show.show_error(message)
    sys.exit(status)


def _show_version(wanted: bool) -> None:
    if wanted:
        show.out.print(f"augserve {augserve.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, export and serve networks whose normalization statistics are explicit.

    \b
    A first round, on the embedded data set:
      augserve train --data digits --norm aug --phi 1.5 --out runs/first
      augserve export model.onnx --run runs/first
      augserve serve model.onnx
      augserve predict digit.png --url http://127.0.0.1:8000 --no-tracking

    Every command takes --debug, which shows the traceback of a failure.
    """


def info(
    path: Annotated[
        Path | None, typer.Argument(help="An exported .onnx file. [default: none]", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Show what a file says about itself, or without one what is installed: versions and the native library.

    \b
    Examples:
      augserve info
      augserve info model.onnx
      augserve info model.onnx --json
    """
    if path is None:
        from augserve.installation import describe_installation

        installation = describe_installation()
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(installation), default=str, indent=2))
        else:
            show.show_installation(installation)
        return

    from augserve.runtime import kernels_of, open_session, read_manifest

    session = open_session(path)
    manifest, kernels = read_manifest(session, path), kernels_of(session)
    if as_json:
        shown = manifest.model_dump(mode="json")
        shown["native"] = {"library": kernels.library and str(kernels.library), "reason": kernels.reason}
        typer.echo(json.dumps(shown, indent=2))
    else:
        show.show_manifest(str(path), manifest, kernels)


for command in (train, export, info, serve, predict, convert):
    app.command()(command)
app.add_typer(bench)

if __name__ == "__main__":
    main()
