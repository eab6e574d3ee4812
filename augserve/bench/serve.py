"""How fast a server answers: under an open load, saturated by callers, and alone, by statistics mode.

Whatever is compared takes turns: the modes with one another, a saturated server with a bare loop of `session.run`
on as many rows a run while the server is idle, a lone request with a bare run of the same rows.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from augserve.bench.bare import BareRuns
from augserve.bench.load import OK, Sample, Tally, Window, drive, percentiles, poisson, tally
from augserve.bench.target import Target
from augserve.bench.traffic import DIFFERENT, Traffic, kinds_of
from augserve.bench.wire import Wire
from augserve.errors import ConfigurationError

OPEN, CLOSED, LONE = "open", "closed", "lone"
_CONNECTIONS = 512  # at most, of an open load
_LONE_PERCENT = (50, 99)
_LONE_WARM_UP = 5


@dataclass(frozen=True)
class LoadRow:
    """A mode under load.

    Args:
        load: "open" or "closed".
        mode: of the requests.
        tally: what was counted in all rounds.
        ratio: of its rows a second to those of the first mode; the median of the rounds.
        generator_cores: processor time of the load generator over the time that passed.
        rows_per_run: the mean that the server reports, or that was given; None: neither.
        bare_rows_per_s: of a loop of `session.run` on as many rows; None: not measured.
        of_bare: the service's rows a second over those; the median of the rounds.
    """

    load: str
    mode: str
    tally: Tally
    ratio: float
    generator_cores: float
    rows_per_run: float | None = None
    bare_rows_per_s: float | None = None
    of_bare: float | None = None


@dataclass(frozen=True)
class LoneRow:
    """One request at a time, each beside a bare run of the same rows; times are [p50, p99] in milliseconds.

    Args:
        load: "lone".
        mode: of the requests.
        pairs: how many were answered with 200.
        service_ms: from the first byte of the request to the last of the answer.
        bare_ms: of `session.run`; None: not measured.
        added_ms: of the differences within the pairs.
        errors: other answers, by status.
    """

    load: str
    mode: str
    pairs: int
    service_ms: list[float]
    bare_ms: list[float] | None
    added_ms: list[float] | None
    errors: dict[str, int]


@dataclass(frozen=True)
class _Turn:
    """One turn of one mode."""

    samples: list[Sample]
    cores: float
    rows_per_run: float | None
    bare: float | None


class ServeBench:
    """A server to measure: one that runs, or one started from a file; use it as a context manager.

    Args:
        model: the served file: gives the shape of rows, and the bare runs. Without `url` it is served here.
        url: a server that runs.
        traffic: what is sent.
        bare: the file of the bare runs, where it is not `model`: such as its folded form.
        shape: of a row, where neither a file nor the server tells.
        threads: of ONNX Runtime in the server that is started and in the bare runs; None: their defaults.

    Raises:
        ConfigurationError: neither a file nor a URL, or a server that does not start.
        ModelFileError: a file that cannot be opened.
        RemoteError: a server that cannot be reached, or that refuses the requests.

    Example:
        >>> with ServeBench("model.onnx", traffic=Traffic(modes=["tracked", "batch"])) as bench:  # doctest: +SKIP
        ...     rows = bench.saturate(callers=32)
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        url: str | None = None,
        traffic: Traffic | None = None,
        bare: str | Path | None = None,
        shape: Sequence[int] | None = None,
        threads: int | None = None,
    ) -> None:
        if model is None and url is None:
            raise ConfigurationError("expected a file to serve, or --url of a server that runs")
        self.traffic = traffic or Traffic()
        file = bare or model
        self._bare = BareRuns(file, threads) if file is not None else None
        headers = self.traffic.headers
        self._target = Target(url, headers) if url is not None else Target.start(model or "", headers, threads)
        self.url, self.process = self._target.url, self._target.process
        try:
            self.shape = tuple(shape or (self._bare.manifest.shape if self._bare else self._target.ask_shape()))
            self._requests = {
                mode: self._target.prepare(self.traffic.requests(mode, self.shape)) for mode in self.traffic.modes
            }
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the server, if it was started here."""
        self._target.close()

    def __enter__(self) -> ServeBench:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def open_loop(self, rate: float) -> list[LoadRow]:
        """Send `rate` requests a second at times of their own, whether the server keeps up or not."""
        traffic = self.traffic
        end = traffic.warm_up_s + traffic.seconds

        def turn(mode: str, number: int) -> _Turn:
            return self._turn(mode, list(poisson(rate, end, traffic.seed + number)), _CONNECTIONS)

        return self._take_turns(OPEN, turn)

    def saturate(self, callers: int, rows_per_run: float | None = None) -> list[LoadRow]:
        """Let callers send the next request as soon as they have an answer, in turn with bare runs.

        Args:
            callers: how many.
            rows_per_run: of the bare loop, where the server's /metrics do not tell.
        """
        if callers < 1 or (rows_per_run is not None and not rows_per_run >= 1):
            raise ConfigurationError(
                f"expected at least 1 caller and 1 row per run; got {callers} and {rows_per_run}"
            )

        def turn(mode: str, number: int) -> _Turn:
            before = self._target.runs()
            made = self._turn(mode, None, callers)
            rows, runs = (after - was for after, was in zip(self._target.runs(), before, strict=True))
            mean = rows / runs if runs else rows_per_run
            bare = self._bare.loop(self.traffic, mode, mean, self.shape) if self._bare and mean else None
            return _Turn(made.samples, made.cores, mean, bare)

        return self._take_turns(CLOSED, turn)

    def lone(self, pairs: int, pause_s: float = 0.0) -> list[LoneRow]:
        """Send one request at a time, each beside a bare run of as many rows; which comes first alternates.

        Args:
            pairs: how many, in each mode.
            pause_s: seconds before each request and each run. ONNX Runtime's threads look for work for a while
                after a run: those of the bare run while the server answers.
        """
        if pairs < 1 or not 0 <= pause_s < float("inf"):
            raise ConfigurationError(
                f"expected at least 1 pair and a pause of 0 s or more; got {pairs}, {pause_s:g}"
            )
        return [self._lone(mode, pairs, pause_s) for mode in self.traffic.modes]

    def _turn(self, mode: str, arrivals: list[float] | None, connections: int) -> _Turn:
        end = self.traffic.warm_up_s + self.traffic.seconds
        began, spent = time.perf_counter(), time.process_time()
        with Wire(self.url, connections) as wire:
            grace_s = self.traffic.timeout_s
            samples = drive(wire, self._requests[mode], arrivals, end, grace_s=grace_s, clock=time.perf_counter)
        cores = (time.process_time() - spent) / (time.perf_counter() - began)
        return _Turn(samples, cores, None, None)

    def _take_turns(self, load: str, turn: Callable[[str, int], _Turn]) -> list[LoadRow]:
        traffic = self.traffic
        window = Window(traffic.warm_up_s, traffic.warm_up_s + traffic.seconds)
        turns: dict[str, list[_Turn]] = {mode: [] for mode in traffic.modes}
        for number in range(traffic.rounds):
            for mode, made in turns.items():
                made.append(turn(mode, number))
        speeds = {
            mode: [tally(one.samples, window, traffic.rows).rows_per_s for one in made]
            for mode, made in turns.items()
        }
        table = []
        for mode, made in turns.items():
            samples = [sample for one in made for sample in one.samples]
            bare = [one.bare for one in made if one.bare is not None]
            means = [one.rows_per_run for one in made if one.rows_per_run is not None]
            table.append(
                LoadRow(
                    load,
                    mode,
                    tally(samples, window, traffic.rows, len(made)),
                    statistics.median(map(_ratio, speeds[mode], speeds[traffic.modes[0]])),
                    statistics.mean(one.cores for one in made),
                    statistics.mean(means) if means else None,
                    statistics.mean(bare) if bare else None,
                    statistics.median(map(_ratio, speeds[mode], bare)) if len(bare) == len(made) else None,
                )
            )
        return table

    def _lone(self, mode: str, pairs: int, pause_s: float) -> LoneRow:
        kinds = kinds_of(mode, DIFFERENT)
        bare_runs = (
            {kind: self._bare.run(self.traffic, kind, 1, self.shape) for kind in kinds} if self._bare else {}
        )
        service: list[float] = []
        bare: list[float] = []
        errors = Counter[str]()
        with Wire(self.url, 1) as wire:
            for number in range(-_LONE_WARM_UP, pairs):
                times: dict[bool, float] = {}
                status = OK
                for by_service in (False, True) if number % 2 else (True, False):
                    if pause_s:
                        time.sleep(pause_s)
                    began = time.perf_counter()
                    if by_service:
                        status = _answer(wire, self._requests[mode][number % DIFFERENT])
                    elif bare_run := bare_runs.get(kinds[number % DIFFERENT]):
                        bare_run()
                    times[by_service] = 1e3 * (time.perf_counter() - began)
                if number < 0:
                    continue
                if status == OK:
                    service.append(times[True])
                    bare.append(times[False])
                else:
                    errors[status] += 1
        added = [a - b for a, b in zip(service, bare, strict=True)]
        shown = (percentiles(bare, _LONE_PERCENT), percentiles(added, _LONE_PERCENT))
        bare_ms, added_ms = shown if all(bare_runs.get(kind) for kind in kinds) else (None, None)
        return LoneRow(
            LONE,
            mode,
            len(service),
            percentiles(service, _LONE_PERCENT),
            bare_ms,
            added_ms,
            dict(sorted(errors.items())),
        )


def _answer(wire: Wire, request: bytes) -> str:
    """Send a request and return the status of its answer."""
    wire.send(request, 0)
    while not (ended := wire.poll(None)):
        pass
    return ended[0][1]


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")
