"""The command line: each command reads its flags, calls its part of the package, and shows what came of it.

Heavy imports stand inside the commands, so that `augserve --help` is quick and serving needs no torch.
Exit status: 0 done, 1 failed (one line on stderr), 2 usage.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import augserve
from augserve import console
from augserve.cli_bench import bench
from augserve.cli_convert import convert
from augserve.errors import AugserveError, ConfigurationError, InputError, ModelFileError, unknown_choice

if TYPE_CHECKING:
    from augserve.service import PredictSettings

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


def _fail(message: str, status: int, debug: bool = False) -> NoReturn:
    if debug:
        traceback.print_exc()
    console.err.print("error: " + " ".join(message.split()), markup=False, style="red")
    sys.exit(status)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.out.print(f"augserve {augserve.__version__}")
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


@app.command()
def train(
    data: Annotated[str, typer.Option(help="Data set: digits, cifar10, fashion-mnist.")] = "digits",
    model: Annotated[
        str,
        typer.Option(
            help="Network: resnet20, resnet38, resnet50-cifar, resnet18, vgg11, vgg16, vgg19, mobilenet-v2, "
            "densenet121, efficientnet-b0."
        ),
    ] = "resnet20",
    norm: Annotated[
        str,
        typer.Option(
            help="Norm: aug, aug-learned, batch, batch-untracked, group, instance, layer, median, none, oni, "
            "robust, robust-tracked, spectral."
        ),
    ] = "aug",
    phi: Annotated[
        float | None,
        typer.Option(
            help="AugNorm's exponent: 1 median .. 2 mean .. inf midrange (learned: at first). [default: 1.5]"
        ),
    ] = None,
    p: Annotated[float | None, typer.Option(help="RobustNorm's power of the range. [default: 0.2]")] = None,
    conv_norm: Annotated[
        bool, typer.Option("--conv-norm", help="Normalize every convolution by its spectrum as well.")
    ] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images in a step.")] = 128,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", "--lr", help="Of SGD, at its highest. [default: 0.1 for digits, else 0.2]"),
    ] = None,
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Of SGD.")] = 5e-4,
    schedule: Annotated[
        str, typer.Option(help="Learning rate over time: cosine (with warm-up) or step.")
    ] = "cosine",
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [default: runs/DATA-MODEL-NORM-DATE-TIME]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")] = False,
) -> None:
    """Train a network; the run is kept in its folder, and runs/latest points to it.

    \b
    Examples:
      augserve train
      augserve train --data digits --norm aug --phi 1.25 --epochs 3 --out runs/first
      augserve train --data cifar10 --data-dir data --norm batch --epochs 20
    """
    from augserve.training import TrainConfig
    from augserve.training import train as run_training
    from augserve.training.allocator import keep_freed_memory
    from augserve.training.run import default_folder, point_latest

    config = TrainConfig(
        data=data,
        data_dir=None if data_dir is None else str(data_dir),
        model=model,
        norm=norm,
        phi=phi,
        p=p,
        conv_norm=conv_norm,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        seed=seed,
        device=device,
    )
    folder = out or default_folder(config)
    keep_freed_memory()
    try:
        with console.TrainingDisplay() as display:
            result = run_training(config, folder, overwrite=overwrite, progress=display)
    except KeyboardInterrupt:
        point_latest(folder)
        _fail(f"stopped; {folder} keeps the last finished epoch, if there was one", 130)
    latest = point_latest(folder)
    console.out.print(f"validation accuracy {result.val_accuracy:.2%}")
    for mode, accuracy in result.test_accuracy.items():
        console.out.print(f"test accuracy, {mode} statistics: {accuracy:.2%}")
    console.out.print(f"{result.images_per_second:.0f} images per second in training")
    console.out.print(f"run kept in {folder}" + (f" ({latest} points to it)" if latest else ""))


@app.command()
def export(
    path: Annotated[Path | None, typer.Argument(help="The .onnx file to write.", show_default=False)] = None,
    run: Annotated[Path, typer.Option(help="Folder of a training run.")] = Path("runs/latest"),
    mode: Annotated[
        str, typer.Option(help="adaptive (statistics chosen by row), tracked (folded) or batch.")
    ] = "adaptive",
    native: Annotated[str, typer.Option(help="Native operators in the parity report: auto, on, off.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="float32, float16 (statistics stay float32) or int8 (mode tracked alone).")
    ] = "float32",
    size: Annotated[
        list[str] | None,
        typer.Option(help="A further image size that the file takes, such as 48x48; repeat for more."),
    ] = None,
    opset: Annotated[int, typer.Option(help="Of the standard operators: 18 or newer.")] = 18,
    verify: Annotated[
        Path | None, typer.Option(help="Write nothing: run the parity report on this file of the run.")
    ] = None,
) -> None:
    """Export a run to ONNX, and prove that the file answers as the network does.

    \b
    Examples:
      augserve export model.onnx
      augserve export folded.onnx --run runs/first --mode tracked
      augserve export small.onnx --mode tracked --precision int8
      augserve export --verify model.onnx --run runs/first
    """
    from typing import cast

    from augserve.export import export_onnx, verify_onnx
    from augserve.manifest import FILE_MODES, FileMode, Precision
    from augserve.runtime_native import Native
    from augserve.training import load_run

    if (path is None) == (verify is None):
        raise typer.BadParameter("expected the .onnx file to write, or --verify FILE")
    if mode not in FILE_MODES:
        raise unknown_choice("file mode", mode, FILE_MODES)
    trained = load_run(run)
    if path is None:
        report = verify_onnx(trained.model, verify or Path(), example=trained.examples, native=cast(Native, native))
    else:
        report = export_onnx(
            trained.model,
            path,
            example=trained.examples,
            mode=cast(FileMode, mode),
            manifest=trained.describe(),
            native=cast(Native, native),
            opset=opset,
            precision=cast(Precision, precision),
            sizes=[_size(text) for text in size or []],
            validation=None if precision == "float32" else trained.validation_rows(),
        )
    console.show_parity(report.checks)
    if report.accuracy is not None:
        console.show_accuracy(precision, report.accuracy)
    if path is None:
        console.out.print(f"{verify} answers as the network of {run} does (mode {report.mode})")
    else:
        console.out.print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB, mode {report.mode})")


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(number) for number in text.lower().split("x"))
    except ValueError:
        raise ConfigurationError(f"expected an image size such as 48x48, height x width; got {text!r}") from None
    return height, width


@app.command()
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
            console.show_installation(installation)
        return

    from augserve.runtime import kernels_of, open_session, read_manifest

    session = open_session(path)
    manifest, kernels = read_manifest(session, path), kernels_of(session)
    if as_json:
        shown = manifest.model_dump(mode="json")
        shown["native"] = {"library": kernels.library and str(kernels.library), "reason": kernels.reason}
        typer.echo(json.dumps(shown, indent=2))
    else:
        console.show_manifest(str(path), manifest, kernels)


@app.command()
def serve(
    path: Annotated[
        Path | None,
        typer.Argument(help="The .onnx file to serve. [default: AUGSERVE_MODEL]", show_default=False),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [default: 8000]")] = None,
    workers: Annotated[int | None, typer.Option(help="Requests run at a time. [default: 1]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads in one run; 0: one a core. [default: 0]")] = None,
    providers: Annotated[
        str | None, typer.Option(help="ONNX Runtime providers, by commas. [default: CPUExecutionProvider]")
    ] = None,
    queue_limit: Annotated[int | None, typer.Option(help="Requests that may wait. [default: 64]")] = None,
    request_timeout_s: Annotated[float | None, typer.Option(help="Seconds one may wait. [default: 30]")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest body. [default: 33554432]")] = None,
    max_rows: Annotated[int | None, typer.Option(help="Most rows in a request. [default: 4096]")] = None,
    max_image_pixels: Annotated[int | None, typer.Option(help="Largest image. [default: 16777216]")] = None,
) -> None:
    """Serve a file over HTTP: POST /predict, and /docs to read. Stops at Ctrl-C or SIGTERM.

    Every setting is also an environment variable, such as AUGSERVE_PORT; a flag wins.

    \b
    Examples:
      augserve serve model.onnx
      augserve serve model.onnx --host 0.0.0.0 --port 9000
    """
    from augserve.service import read_settings
    from augserve.service import serve as run_server

    settings = read_settings(
        model=path,
        host=host,
        port=port,
        workers=workers,
        threads=threads,
        providers=providers,
        queue_limit=queue_limit,
        request_timeout_s=request_timeout_s,
        max_body_bytes=max_body_bytes,
        max_rows=max_rows,
        max_image_pixels=max_image_pixels,
    )
    shown = ", ".join(f"{name}={value}" for name, value in settings.model_dump(mode="json").items())
    console.out.print(f"settings: {shown}", markup=False)
    run_server(
        settings, on_ready=lambda url: console.out.print(f"serving {settings.model} at {url} (docs: {url}/docs)")
    )
    console.out.print("stopped")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP files.", show_default=False)],
    model: Annotated[Path | None, typer.Option(help="An exported file, run here.")] = None,
    url: Annotated[str | None, typer.Option(help="A server, such as http://127.0.0.1:8000.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a statistics group. [default: all of them]")
    ] = None,
    tracking: Annotated[
        bool | None,
        typer.Option(
            "--tracking/--no-tracking", help="Tracked statistics, or each group's own. [default: the file's]"
        ),
    ] = None,
    tracked_weight: Annotated[
        float | None, typer.Option(help="Blend: weight of the tracked statistics, 0 to 1.")
    ] = None,
    prior: Annotated[float | None, typer.Option(help="Blend: rows that the tracked statistics count for.")] = None,
    remainder: Annotated[
        str, typer.Option(help="The last images that fill no group: own, merge, drop, error.")
    ] = "own",
    top_k: Annotated[int | None, typer.Option(help="Show the k most probable classes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Predict images with a file (--model) or a server (--url).

    \b
    Examples:
      augserve predict digit.png --model model.onnx
      augserve predict *.png --url http://127.0.0.1:8000 --batch-size 8 --no-tracking
    """
    if (model is None) == (url is None):
        raise ConfigurationError("expected one of --model FILE and --url URL")
    blend: dict[str, float] = {
        name: value for name, value in (("tracked_weight", tracked_weight), ("prior", prior)) if value is not None
    }
    if blend and tracking is not None:
        raise ConfigurationError("expected --tracking/--no-tracking or a blend; got both: leave one of them out")
    contents = [_read(image) for image in images]
    if url is not None:
        from augserve.client import Client

        with Client(url) as client:
            answer = client.predict(contents, batch_size, tracking, blend or None, remainder=remainder, top_k=top_k)
    else:
        from augserve.service.schemas import parse_settings

        given: dict[str, Any] = {"remainder": remainder, "batch_size": batch_size, "tracking": tracking}
        given |= {"top_k": top_k, "blend": blend or None}
        settings = parse_settings({k: v for k, v in given.items() if v is not None}, strict=True)
        answer = _predict_here(model or Path(), images, contents, settings)
    if as_json:
        import orjson

        typer.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())
    else:
        console.show_predictions([str(image) for image in images], answer)


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as error:
        raise InputError(f"{image}: cannot be read ({error.strerror})") from None


def _predict_here(
    model: Path, images: Sequence[Path], contents: Sequence[bytes], settings: PredictSettings
) -> dict[str, Any]:
    """Predict without a server: what the service does with a request, in this process."""
    import numpy as np

    from augserve.service import Predictor
    from augserve.service.images import decode_image

    predictor = Predictor.open(model)
    preprocessing = predictor.manifest.preprocessing
    if preprocessing is None:
        raise ModelFileError(f"{model}: says nothing of preprocessing, so it takes rows, not images")
    rows = []
    for image, content in zip(images, contents, strict=True):
        try:
            rows.append(decode_image(content, preprocessing))
        except AugserveError as error:
            raise InputError(f"{image}: {error}") from None
    return dict(predictor.predict(np.stack(rows), settings))


app.command()(convert)
app.add_typer(bench)

if __name__ == "__main__":
    main()
