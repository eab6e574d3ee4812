"""The command `augserve convert`: anyone's ONNX file, made adaptive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from augserve.cli import show
from augserve.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def convert(
    source: Annotated[Path, typer.Argument(help="The .onnx file to convert.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="The .onnx file to write.", show_default=False)],
    norm: Annotated[
        str, typer.Option(help="Center of a group: batch (mean) or aug (generalized median).")
    ] = "batch",
    phi: Annotated[
        float | None, typer.Option(help="Exponent for aug: 1 median .. 2 mean .. inf midrange. [default: 1.5]")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="A row's shape where the file leaves it open, such as image=3x64x64; repeat for more inputs. "
            "[default: tried out]",
            show_default=False,
        ),
    ] = None,
    example: Annotated[
        Path | None,
        typer.Option(help="A .npz file of real rows, by input name, for the report. [default: random ones]"),
    ] = None,
    native: Annotated[str, typer.Option(help="Native operators in the parity report: auto, on, off.")] = "auto",
) -> None:
    """Make an ONNX file adaptive: its BatchNormalization nodes get statistics modes and groups.

    The file may come from any exporter, from opset 9 on, as long as its BatchNormalization nodes are still in it.
    With tracked statistics it answers as before; the new inputs are group and tracked_weight.

    \b
    Examples:
      augserve convert theirs.onnx adaptive.onnx
      augserve convert theirs.onnx adaptive.onnx --norm aug --phi 1
      augserve convert theirs.onnx adaptive.onnx --shape image=3x48x192 --example rows.npz
    """
    from typing import cast

    from augserve.export.foreign.convert import convert_onnx
    from augserve.runtime.kernels import Native

    if phi is not None and norm != "aug":
        raise ConfigurationError(f"norm {norm!r} does not take 'phi'; leave it out, or choose aug")
    report = convert_onnx(
        source,
        target,
        norm=norm,
        phi=1.5 if phi is None else phi,
        example=None if example is None else _read_rows(example),
        shapes=dict(_shape(text) for text in shape or ()),
        native=cast(Native, native),
    )
    show.show_parity(report.checks, "the original against the converted file")
    show.out.print(f"wrote {target} ({target.stat().st_size / 1e6:.2f} MB, mode {report.mode})")


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.rpartition("=")
    try:
        return name, tuple(int(size) for size in sizes.lower().split("x"))
    except ValueError:
        raise ConfigurationError(f"expected a shape such as image=3x64x64; got {text!r}") from None


def _read_rows(path: Path) -> dict[str, NDArray[Any]]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a .npz file of arrays by input name ({error})") from None
