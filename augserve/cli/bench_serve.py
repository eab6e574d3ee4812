"""The command `augserve bench serve`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from augserve.cli import show
from augserve.errors import ConfigurationError

if TYPE_CHECKING:
    from augserve.bench.serve import LoadRow, LoneRow


def serve(
    path: Annotated[
        Path | None,
        typer.Argument(help="The served .onnx file; without --url a server is started for it.", show_default=False),
    ] = None,
    url: Annotated[str | None, typer.Option(help="A server that runs, such as http://127.0.0.1:8000.")] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop: requests a second.")] = None,
    callers: Annotated[int | None, typer.Option(help="Closed loop: callers that saturate the server.")] = None,
    lone: Annotated[
        int | None, typer.Option(help="One request at a time: how many, each beside a bare run.")
    ] = None,
    modes: Annotated[
        str, typer.Option(help="Statistics modes by commas: tracked, batch, blend, mixed.")
    ] = "tracked",
    rows: Annotated[int, typer.Option(help="Rows of a request.")] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Rows in a statistics group. [default: all of the request]", show_default=False),
    ] = None,
    body: Annotated[str, typer.Option(help="json or npy.")] = "json",
    seconds: Annotated[float, typer.Option(help="Of a turn that count.")] = 5.0,
    rounds: Annotated[int, typer.Option(help="Turns of each mode.")] = 3,
    warm_up_s: Annotated[float, typer.Option(help="Seconds at the start of a turn that do not count.")] = 1.0,
    timeout_s: Annotated[
        float, typer.Option(help="Seconds after a turn until a missing answer is an error.")
    ] = 30.0,
    pause_ms: Annotated[float, typer.Option(help="Before each request and run of --lone.")] = 0.0,
    bare: Annotated[
        Path | None,
        typer.Option(help="File of the bare runs. [default: the served one]", show_default=False),
    ] = None,
    rows_per_run: Annotated[
        float | None, typer.Option(help="Of the bare loop, where /metrics do not tell.", show_default=False)
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Of a row, such as 3x32x32, where nothing else tells.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of ONNX Runtime, in the started server and bare runs.", show_default=False)
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="NAME:VALUE of every request; repeat for more.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of rows and arrivals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Measure a server: latency at a rate of requests, rows a second under callers, what a lone request costs.

    Gives what of --rate, --callers and --lone is asked for, in the order lone, open, closed. Modes take turns; a
    saturated server takes turns with a bare loop of session.run. Nothing else should run on the machine.

    \b
    Examples:
      augserve bench serve model.onnx --lone 1000
      augserve bench serve model.onnx --callers 32 --modes tracked,batch --rows 8
      augserve bench serve --url http://127.0.0.1:8000 --rate 200 --modes mixed --json
    """
    from augserve.bench.serve import ServeBench
    from augserve.bench.traffic import Traffic

    if rate is None and callers is None and lone is None:
        raise ConfigurationError("expected a load: one or more of --rate R, --callers N and --lone N")
    traffic = Traffic(
        modes=[mode.strip() for mode in modes.split(",")],
        rows=rows,
        batch_size=batch_size,
        body=body,
        seconds=seconds,
        rounds=rounds,
        warm_up_s=warm_up_s,
        timeout_s=timeout_s,
        headers=dict(_header(text) for text in header or []),
        seed=seed,
    )
    sizes = shape_of(shape) if shape is not None else None
    table: list[LoadRow | LoneRow] = []
    with ServeBench(path, url=url, traffic=traffic, bare=bare, shape=sizes, threads=threads) as measured:
        if lone is not None:
            table += measured.lone(lone, pause_ms / 1e3)
        if rate is not None:
            table += measured.open_loop(rate)
        if callers is not None:
            table += measured.saturate(callers, rows_per_run)
        server: dict[str, Any] = {"url": measured.url}
        if measured.process is not None:
            server |= {"ready_s": measured.process.ready_s, "peak_mib": measured.process.peak_mib()}
    if as_json:
        import orjson

        answer: dict[str, Any] = {
            "server": server,
            "traffic": asdict(traffic),
            "results": [asdict(row) for row in table],
        }
        del answer["traffic"]["headers"]  # they may hold a key
        typer.echo(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())
    else:
        _show_serve(table, server)


def _show_serve(table: list[LoadRow | LoneRow], server: dict[str, Any]) -> None:
    from augserve.bench.serve import LoneRow

    for row in table:
        name = f"{row.load}, {row.mode}: "
        errors = row.errors if isinstance(row, LoneRow) else row.tally.errors
        if isinstance(row, LoneRow):
            parts = {"request": row.service_ms, "bare run": row.bare_ms, "added": row.added_ms}
            times = "; ".join(f"{part} p50 {ms[0]:.2f}, p99 {ms[1]:.2f} ms" for part, ms in parts.items() if ms)
            line = f"{name}{times}; {row.pairs} pairs"
        else:
            t = row.tally
            line = f"{name}{t.rows_per_s:.1f} rows/s ({row.ratio:.2f}), {t.requests} requests; p50 {t.p50_ms:.2f}, "
            line += f"p90 {t.p90_ms:.2f}, p99 {t.p99_ms:.2f}, max {t.max_ms:.2f} ms"
            if row.rows_per_run is not None:
                line += f"; {row.rows_per_run:.1f} rows a run"
            if row.of_bare is not None:
                line += f", {row.of_bare:.1%} of {row.bare_rows_per_s:.1f} rows/s in bare runs"
        line += "".join(f"; {count} x {status}" for status, count in errors.items())
        show.out.print(line, style="red" if errors else None)
    if "ready_s" in server:
        memory = f", at most {server['peak_mib']:.0f} MiB" if server["peak_mib"] is not None else ""
        show.out.print(f"server: ready after {server['ready_s']:.2f} s{memory}")


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isprintable() or not text.isascii():
        raise ConfigurationError(f"expected a header NAME:VALUE in ASCII; got {text!r}")
    return name.strip(), value.strip()


def shape_of(text: str) -> tuple[int, ...]:
    """Return the sizes in a text such as 3x32x32."""
    try:
        return tuple(int(size) for size in text.lower().split("x"))
    except ValueError:
        raise ConfigurationError(f"expected a shape such as 128x16x32x32; got {text!r}") from None
