"""When a load sends what, and what is counted, on a clock that is set by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from augserve.bench.load import LATE, OK, Sample, Window, drive, percentiles, poisson, tally
from augserve.errors import ConfigurationError


class FakeServer:
    """Answers one request after the other, each in `service_s`; time passes while its answers are waited for."""

    def __init__(self, service_s: float, limit: int, status: Callable[[int], str] = lambda token: OK) -> None:
        self.now = 100.0  # the load's own times begin at 0
        self.sent: list[tuple[int, bytes]] = []
        self.most = 0
        self._service_s, self._limit, self._status = service_s, limit, status
        self._queue: deque[tuple[int, float]] = deque()  # token, when its answer comes
        self._over = self.now

    def clock(self) -> float:
        return self.now

    @property
    def free(self) -> bool:
        return len(self._queue) < self._limit

    def send(self, request: bytes, token: int) -> None:
        assert self.free
        self._over = max(self.now, self._over) + self._service_s
        self._queue.append((token, self._over))
        self.sent.append((token, request))
        self.most = max(self.most, len(self._queue))

    def poll(self, timeout: float | None) -> Sequence[tuple[int, str]]:
        until = self.now + timeout if timeout is not None else math.inf
        if self._queue and self._queue[0][1] <= until:
            token, self.now = self._queue.popleft()
            return [(token, self._status(token))]
        self.now = max(until, math.nextafter(self.now, math.inf))  # as on a real clock, some time passes
        return []


def run(server: FakeServer, arrivals: Sequence[float] | None, end: float, grace_s: float = 1e6) -> list[Sample]:
    return drive(server, [b"a", b"b", b"c"], arrivals, end, grace_s=grace_s, clock=server.clock)


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_latency_of_an_open_load_counts_from_the_time_that_was_due(limit: int) -> None:
    rng = np.random.default_rng(0)
    due = np.sort(rng.uniform(0, 20, 150))  # 7.5 a second for a server that manages 5
    over = 0.0
    expected = []
    for time in due:  # one server, first come, first served
        over = max(time, over) + 0.2
        expected.append(over - time)
    server = FakeServer(0.2, limit)
    samples = run(server, due.tolist(), 20)
    assert max(expected) > 5
    np.testing.assert_allclose([s.done - s.due for s in samples], expected, atol=1e-9)
    np.testing.assert_allclose([s.due for s in samples], due, atol=1e-12)
    assert all(s.due <= s.sent + 1e-9 <= s.done for s in samples)
    assert server.most <= limit
    late = [s.sent - s.due for s in samples]
    assert max(late) == pytest.approx(0, abs=1e-9) if limit == 1000 else max(late) > 1


def test_requests_are_sent_in_turn() -> None:
    server = FakeServer(0.1, 2)
    run(server, [0.1 * k for k in range(7)], 1)
    assert server.sent == list(enumerate([b"a", b"b", b"c", b"a", b"b", b"c", b"a"]))


@pytest.mark.parametrize("callers", [1, 7, 200])
def test_callers_saturate_the_server_and_wait_for_one_another(callers: int) -> None:
    server = FakeServer(0.01, callers)
    samples = run(server, None, 10)
    assert server.most == callers
    counted = tally(samples, Window(4, 10), rows=8)
    assert counted.rows_per_s == pytest.approx(8 / 0.01, rel=0.01)
    assert counted.p50_ms == pytest.approx(1e3 * 0.01 * callers)
    assert counted.max_ms == pytest.approx(1e3 * 0.01 * callers)
    assert counted.behind_ms == 0
    assert not counted.errors
    assert all(sample.sent < 10 for sample in samples)


def test_errors_are_counted_by_status_and_serve_no_rows() -> None:
    statuses = [OK, "429", OK, "503", OK, "429"]
    due = [0.5 * k for k in range(60)]
    samples = run(FakeServer(0.01, 10, lambda token: statuses[token % 6]), due, 30)
    counted = tally(samples, Window(0, 30), rows=2)
    assert counted.errors == {"429": 20, "503": 10}
    assert counted.requests == 60
    assert counted.rows_per_s == pytest.approx(2 * 30 / 30)


@pytest.mark.parametrize("limit", [4, 1000])
def test_what_is_not_answered_in_time_is_an_error_sent_or_not(limit: int) -> None:
    due = [0.25 * k for k in range(40)]
    server = FakeServer(1e9, limit)
    samples = run(server, due, 10, grace_s=5)
    assert server.now == pytest.approx(115)
    assert Counter(s.status for s in samples) == {LATE: 40}
    counted = tally(samples, Window(5, 10), rows=1)
    assert counted.errors == {LATE: 20}
    assert counted.rows_per_s == 0
    assert math.isnan(counted.p50_ms)


def test_the_window_decides_what_counts() -> None:
    rng = np.random.default_rng(1)
    due = rng.uniform(0, 10, 500)
    done = due + rng.exponential(1, 500)
    ok = rng.random(500) < 0.8
    samples = [Sample(d, d + 0.001, e, OK if good else "500") for d, e, good in zip(due, done, ok, strict=True)]
    counted = tally(samples, Window(2, 8), rows=3, turns=2)
    ends, begins = (done >= 2) & (done < 8), (due >= 2) & (due < 8)
    latencies = 1e3 * (done - due)[begins & ok]
    assert counted.requests == ends.sum()
    assert counted.rows_per_s == pytest.approx(3 * (ends & ok).sum() / 12)
    assert counted.errors == {"500": (begins & ~ok).sum()}
    shown = [counted.p50_ms, counted.p90_ms, counted.p99_ms, counted.max_ms]
    np.testing.assert_allclose(shown, np.percentile(latencies, [50, 90, 99, 100]))
    assert counted.behind_ms == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 101, 1000])
def test_percentiles_are_those_of_numpy(n: int) -> None:
    values = np.random.default_rng(n).lognormal(size=n)
    wanted = (0, 1, 50, 90, 99, 99.9, 100)
    np.testing.assert_allclose(percentiles(values.tolist(), wanted), np.percentile(values, wanted))


def test_arrivals_are_a_poisson_process_of_the_seed() -> None:
    times = list(poisson(200, 50, seed=3))
    gaps = np.diff(times, prepend=0)
    assert (gaps > 0).all()
    assert times[-1] < 50
    assert abs(len(times) - 10_000) < 5 * math.sqrt(10_000)
    assert stats.kstest(gaps, stats.expon(scale=1 / 200).cdf).pvalue > 0.01
    assert times == list(poisson(200, 50, seed=3))
    assert times[0] != next(poisson(200, 50, seed=4))
    assert times[:100] == list(itertools.islice(poisson(200, 1e9, seed=3), 100))


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_a_rate_that_cannot_be_is_refused(rate: float) -> None:
    with pytest.raises(ConfigurationError, match="rate above 0"):
        poisson(rate, 1, seed=0)
