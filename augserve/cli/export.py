"""The command `augserve export`: a run as an ONNX file, with the proof that it answers as the network does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from augserve.cli import show
from augserve.errors import ConfigurationError, unknown_choice


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
    from augserve.runtime.kernels import Native
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
    show.show_parity(report.checks)
    if report.accuracy is not None:
        show.show_accuracy(precision, report.accuracy)
    if path is None:
        show.out.print(f"{verify} answers as the network of {run} does (mode {report.mode})")
    else:
        show.out.print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB, mode {report.mode})")


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(number) for number in text.lower().split("x"))
    except ValueError:
        raise ConfigurationError(f"expected an image size such as 48x48, height x width; got {text!r}") from None
    return height, width
