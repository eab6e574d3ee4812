#!/usr/bin/env python3
"""The same .onnx file behind augserve, LitServe and mosec, saturated by callers with JSON requests of one row.

    benchmarks/servers.py model.onnx                              all three, three rounds of five seconds
    benchmarks/servers.py model.onnx --folder ~/venvs --rounds 9 --json

LitServe and mosec get an environment of their own under --folder, made by pip at the first use. They batch with
their own settings, 32 rows and 5 ms, and take part twice, with either way to hand a row on to the model. Only one
server runs at a time; in each round each is started, warmed up, measured, stopped. `ratio` is augserve's rows a
second over this server's, the median of the rounds. Memory is the sum of the peaks of all processes of a server, so
pages that they share count more than once.

An adaptive file runs in tracked mode. Its native operators are augserve's: give the folded file (`augserve export
--mode tracked`) to compare the servers alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import orjson

from augserve.bench.load import Sample, Window, drive, tally
from augserve.bench.server_process import ServerProcess
from augserve.bench.traffic import DIFFERENT
from augserve.bench.wire import Wire, request_bytes
from augserve.runtime import open_session, read_manifest

HERE = Path(__file__).resolve().parent
JSON = "application/json"


@dataclass(frozen=True)
class Contestant:
    """A server: what starts it, where and how it takes a row, what it needs."""

    name: str
    command: tuple[str, ...]
    ready: str
    path: str
    field: str
    package: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


CONTESTANTS = {
    one.name: one
    for one in (
        Contestant(
            "augserve",
            ("-m", "augserve", "serve", "{file}", "--host", "127.0.0.1", "--port", "{port}"),
            "/readyz",
            "/predict",
            "instances",
        ),
        Contestant(
            "litserve",
            (str(HERE / "servers_litserve.py"), "{port}"),
            "/health",
            "/predict",
            "input",
            "litserve==0.2.19",
        ),
        Contestant(
            "litserve, fast queue",
            (str(HERE / "servers_litserve.py"), "{port}", "fast"),
            "/health",
            "/predict",
            "input",
            "litserve==0.2.19",
        ),
        Contestant(
            "mosec",
            (str(HERE / "servers_mosec.py"), "--address", "127.0.0.1", "--port", "{port}", "--timeout", "30000"),
            "/",
            "/inference",
            "input",
            "mosec==0.9.8",
        ),
        Contestant(
            "mosec, 2 stages",
            (str(HERE / "servers_mosec.py"), "--address", "127.0.0.1", "--port", "{port}", "--timeout", "30000"),
            "/",
            "/inference",
            "input",
            "mosec==0.9.8",
            {"BENCH_STAGES": "2"},
        ),
        Contestant(
            "mosec, its own JSON",
            (str(HERE / "servers_mosec.py"), "--address", "127.0.0.1", "--port", "{port}", "--timeout", "30000"),
            "/",
            "/inference",
            "input",
            "mosec==0.9.8",
            {"BENCH_JSON": "own"},
        ),
    )
}


@dataclass
class Result:
    """What the turns of one server came to."""

    samples: list[Sample] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--servers", help="names by semicolons: " + "; ".join(CONTESTANTS))
    parser.add_argument("--folder", type=Path, help="for the environments; left out: a temporary one")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=2.0)
    parser.add_argument("--threads", type=int, help="of ONNX Runtime, in all; left out: each server's default")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    names = [name.strip() for name in given.servers.split(";")] if given.servers else list(CONTESTANTS)
    for name in names:
        if name not in CONTESTANTS:
            parser.error(f"unknown server {name!r}; choose from: {'; '.join(CONTESTANTS)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        pythons = {name: _python(CONTESTANTS[name], folder) for name in names}
        results = {name: Result() for name in names}
        for _, name in itertools.product(range(given.rounds), names):
            _measure(CONTESTANTS[name], pythons[name], given, results[name])
    _print(results, given)


def _python(contestant: Contestant, folder: Path) -> str:
    """Return the Python of the server's environment; make it where there is none."""
    if contestant.package is None:
        return sys.executable
    home = folder / contestant.package.replace("==", "-")
    python, done = home / "bin" / "python", home / "complete"
    if not done.exists():
        print(f"making {home}", file=sys.stderr)
        packages = [contestant.package, f"onnxruntime=={ort.__version__}", f"numpy=={np.__version__}", "orjson"]
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        done.touch()
    return str(python)


def _measure(contestant: Contestant, python: str, given: argparse.Namespace, result: Result) -> None:
    """Start a server, saturate it for a turn, stop it."""
    settings = {"BENCH_FILE": str(given.file.resolve())}
    if given.threads is not None:
        settings |= {"BENCH_THREADS": str(given.threads), "AUGSERVE_THREADS": str(given.threads)}
    environment = {**os.environ, **settings, **contestant.environment}
    if contestant.package is not None:
        environment.pop("PYTHONPATH", None)  # this environment's packages are not the other's
    command = [python, *(part.replace("{file}", str(given.file)) for part in contestant.command)]
    shape = read_manifest(open_session(given.file, threads=1), given.file).shape
    rows = np.random.default_rng(0).standard_normal((DIFFERENT, *shape), dtype=np.float32)
    with ServerProcess(command, ready=contestant.ready, environment=environment) as server:
        bodies = [
            orjson.dumps(
                {contestant.field: row[None] if contestant.name == "augserve" else row},
                option=orjson.OPT_SERIALIZE_NUMPY,
            )
            for row in rows
        ]
        _check(server.url + contestant.path, bodies[0], rows[0], given.file)
        requests = [request_bytes(server.url, contestant.path, body, JSON) for body in bodies]
        end = given.warm_up + given.seconds
        with Wire(server.url, given.callers) as wire:
            samples = drive(wire, requests, None, end, grace_s=30, clock=time.perf_counter)
        result.samples += samples
        result.speeds.append(tally(samples, Window(given.warm_up, end), 1).rows_per_s)
        result.ready_s.append(server.ready_s)
        result.peak_mib.append(server.peak_mib() or 0.0)


def _check(url: str, body: bytes, row: np.ndarray, file: Path) -> None:
    """See that the server gives the file's own answer."""
    answer = httpx.post(url, content=body, headers={"Content-Type": JSON}, timeout=60, trust_env=False)
    if answer.status_code != httpx.codes.OK:
        raise SystemExit(f"{url} answered {answer.status_code}: {answer.text[:300]}")
    came = answer.json()
    came = came["predictions"][0] if "predictions" in came else came
    session = open_session(file, threads=1)
    feed = {node.name: np.zeros(1, np.int64) for node in session.get_inputs() if node.name == "group"}
    feed |= {node.name: np.ones(1, np.float32) for node in session.get_inputs() if node.name == "tracked_weight"}
    logits = session.run(None, {"input": row[None], **feed})[0][0].astype(np.float64)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    if not np.allclose(came["probabilities"], expected, atol=1e-4):
        raise SystemExit(f"{url} answered {came['probabilities']}; expected {expected.tolist()}")


def _print(results: dict[str, Result], given: argparse.Namespace) -> None:
    window = Window(given.warm_up, given.warm_up + given.seconds)
    table = []
    for name, result in results.items():
        counted = tally(result.samples, window, 1, given.rounds)
        ours = results["augserve"].speeds if "augserve" in results else []
        ratios = [a / b for a, b in zip(ours, result.speeds, strict=False) if b]
        row = {"server": name, **asdict(counted), "ratio": statistics.median(ratios) if ratios else None}
        row |= {"ready_s": statistics.median(result.ready_s), "peak_mib": max(result.peak_mib)}
        table.append(row)
    if given.json:
        print(orjson.dumps(table, option=orjson.OPT_INDENT_2).decode())
        return
    print(f"{'server':<22}{'rows/s':>9}{'ratio':>7}{'p50':>11}{'p99':>11}{'ready':>9}{'memory':>11}  errors")
    for row in table:
        ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else "-"
        errors = ", ".join(f"{count} x {status}" for status, count in row["errors"].items()) or "none"
        times = f"{row['p50_ms']:>8.1f} ms{row['p99_ms']:>8.1f} ms{row['ready_s']:>7.1f} s"
        print(f"{row['server']:<22}{row['rows_per_s']:>9.1f}{ratio:>7}{times}{row['peak_mib']:>7.0f} MiB  {errors}")


if __name__ == "__main__":
    main()
