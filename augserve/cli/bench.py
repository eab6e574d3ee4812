"""The commands under `augserve bench`: what is promised in numbers, measured on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from augserve.cli import show
from augserve.cli.bench_serve import serve, shape_of
from augserve.errors import AugserveError, unknown_choice

if TYPE_CHECKING:
    from augserve.bench.median import MedianRow, MedianSummary

bench = typer.Typer(name="bench", no_args_is_help=True, rich_markup_mode=None)


@bench.callback()
def _bench() -> None:
    """Measure what augserve promises in numbers.

    \b
    Examples:
      augserve bench median
      augserve bench median --dtype both --json
      augserve bench norms --zeros 0.3
      augserve bench networks
      augserve bench files --model resnet18
      augserve bench serve model.onnx --callers 32
    """


@bench.command()
def median(
    dtype: Annotated[str, typer.Option(help="Of the data: float64, float32, both.")] = "float64",
    phi: Annotated[
        list[float] | None,
        typer.Option(help="Exponent in [1, inf]; repeat for more. [default: ten of 1 .. inf]", show_default=False),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(
            help="normal, relu, relu-1, student, outlier, clusters, lognormal, zeros, constant; repeat for more. "
            "[default: all]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the data.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows and their summary as JSON.")] = False,
) -> None:
    """Measure the generalized median against its definition: error and passes.

    Each row is the worst of several draws, compared with bisection in float64 on the same values. The exit status
    is 1 where a row misses the bar.

    \b
    Examples:
      augserve bench median
      augserve bench median --case student --case outlier --phi 1.5 --phi inf
      augserve bench median --dtype float32 --json
    """
    from augserve.bench.median import PHIS, PRECISIONS, median_accuracy, summarize

    if dtype not in {*PRECISIONS, "both"}:
        raise unknown_choice("dtype", dtype, [*PRECISIONS, "both"])
    names = tuple(PRECISIONS) if dtype == "both" else (dtype,)
    tables = {name: median_accuracy(name, cases=case, phis=phi or PHIS, seed=seed) for name in names}
    answer: dict[str, Any] = {}
    count = missed = 0
    for name, table in tables.items():
        rows = list(table if as_json else show.shown_median_rows(name, table))
        summary = summarize(rows)
        if as_json:
            answer[name] = _as_json(rows, summary)
        else:
            show.show_median_summary(len(rows), summary)
        count, missed = count + len(rows), missed + len(summary.missed)
    if as_json:
        import orjson

        typer.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())
    if missed:
        raise AugserveError(f"{missed} of {count} rows miss the bar")


@bench.command()
def norms(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Shape such as 128x16x32x32; repeat for more. [default: six of them]", show_default=False
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns of every norm; the figures are medians.")] = 9,
    zeros: Annotated[float, typer.Option(help="Fraction of the values that is 0, in [0, 1).")] = 0.0,
    relu: Annotated[bool, typer.Option("--relu", help="Take the values after a ReLU.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Let torch.compile of the papers' method take part.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Time the norms beside torch's BatchNorm: forward, forward and backward, memory kept between.

    All take turns in one process. Nothing else should run on the machine.

    \b
    Examples:
      augserve bench norms
      augserve bench norms --shape 128x64x16x16 --zeros 0.3 --rounds 21
      augserve bench norms --device cuda --json
    """
    from augserve.bench.norms import SHAPES, measure_norms

    shapes = SHAPES if shape is None else tuple(shape_of(text) for text in shape)
    table = measure_norms(device, shapes=shapes, rounds=rounds, zeros=zeros, relu=relu, compiled=compiled)
    if not as_json:
        show.show_norm_rows(table)
        return
    import orjson

    typer.echo(orjson.dumps([asdict(row) for row in table], option=orjson.OPT_INDENT_2).decode())


@bench.command()
def networks(
    model: Annotated[str, typer.Option(help="The network.")] = "resnet20",
    batch: Annotated[int, typer.Option(help="Images (3 x 32 x 32) in a batch, at least 2.")] = 128,
    rounds: Annotated[int, typer.Option(help="Turns of every network; the figures are medians.")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Time a whole network with each norm: a training step, and inference in each mode.

    Ratios of training are to torch's BatchNorm2d in the same network, those of inference to mode tracked. All take
    turns in one process. Nothing else should run on the machine.

    \b
    Examples:
      augserve bench networks
      augserve bench networks --batch 64 --rounds 11
      augserve bench networks --device cuda --json
    """
    from augserve.bench.networks import measure_networks
    from augserve.training.allocator import keep_freed_memory

    keep_freed_memory()  # as `augserve train` does
    rows = measure_networks(device, model=model, batch=batch, rounds=rounds)
    if not as_json:
        show.show_network_rows(rows)
        return
    import orjson

    typer.echo(orjson.dumps([asdict(row) for row in rows], option=orjson.OPT_INDENT_2).decode())


@bench.command()
def files(
    model: Annotated[str, typer.Option(help="The network.")] = "resnet20",
    norm: Annotated[str, typer.Option(help="Its norm, one with statistics modes.")] = "aug",
    rows: Annotated[
        list[int] | None,
        typer.Option(help="Rows of a run; repeat for more. [default: 32, 128]", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns of every file; the figures are medians.")] = 9,
    threads: Annotated[int, typer.Option(help="Of ONNX Runtime; 0: one a core.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Time exported files on ONNX Runtime: every mode beside the folded file, native operators or not.

    All take turns in one process. Nothing else should run on the machine.

    \b
    Examples:
      augserve bench files
      augserve bench files --model resnet18 --rows 32 --rounds 21
    """
    from augserve.bench.files import measure_files

    table = measure_files(model, norm=norm, rows=rows or (32, 128), rounds=rounds, threads=threads)
    if not as_json:
        show.show_file_rows(table)
        return
    import orjson

    typer.echo(orjson.dumps([asdict(row) for row in table], option=orjson.OPT_INDENT_2).decode())


def _as_json(rows: list[MedianRow], summary: MedianSummary) -> dict[str, Any]:
    """Return rows and summary; orjson writes inf and NaN as null, so that phi = inf becomes a word."""
    shown = [asdict(row) | {"phi": "inf" if row.phi == float("inf") else row.phi, "ok": row.ok} for row in rows]
    numbers = {"worst_error": summary.worst.error, "most_passes": summary.most_passes}
    return {"rows": shown, **numbers, "missed": len(summary.missed)}


bench.command()(serve)
