"""Load on a server: when requests are sent, and what is counted of their answers.

Open loop: requests come at times of their own, whether the server keeps up or not, and a request's latency counts
from its time, not from when a connection was free for it. Otherwise a server that stalls would be asked less while
it stalls ("coordinated omission"). Closed loop: every caller sends its next request as soon as it has an answer.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from augserve.errors import ConfigurationError

OK, LATE = "200", "no answer in time"
_BUNDLE = 64  # requests sent before answers are read again


class Link(Protocol):
    """What carries requests: `augserve.bench.wire.Wire`."""

    @property
    def free(self) -> bool:
        """Whether a request can be sent now."""

    def send(self, request: bytes, token: int) -> None:
        """Start a request."""

    def poll(self, timeout: float | None) -> Sequence[tuple[int, str]]:
        """Wait until something happens or for `timeout` seconds; return the tokens that ended and their status."""


class Sample(NamedTuple):
    """A request that ended: when it was due, sent and over, in seconds since the start, and its status."""

    due: float
    sent: float
    done: float
    status: str


class Window(NamedTuple):
    """The part of a load that counts, in seconds since its start."""

    start: float
    end: float


@dataclass(frozen=True)
class Tally:
    """What a load came to.

    Args:
        requests: requests that ended within the window.
        rows_per_s: rows of the answers with status 200 in the window, over its seconds.
        p50_ms, p90_ms, p99_ms, max_ms: latency of the answers with status 200 to requests due within the window;
            NaN where there is none.
        behind_ms: 99th percentile of how late requests were sent, for want of a connection or of the generator's
            time; part of the latency.
        errors: requests due within the window that had another end, by status.
    """

    requests: int
    rows_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    behind_ms: float
    errors: dict[str, int] = field(default_factory=dict)


def poisson(rate: float, end: float, seed: int) -> Iterator[float]:
    """Return the times before `end` of arrivals that know nothing of each other, `rate` a second.

    Raises:
        ConfigurationError: a rate that is not a positive number.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ConfigurationError(f"expected a rate above 0 requests a second; got {rate:g}")
    random_ = random.Random(seed)
    gaps = (random_.expovariate(rate) for _ in itertools.count())
    return itertools.takewhile(lambda due: due < end, itertools.accumulate(gaps))


def drive(
    link: Link,
    requests: Sequence[bytes],
    arrivals: Iterable[float] | None,
    end: float,
    *,
    grace_s: float,
    clock: Callable[[], float],
) -> list[Sample]:
    """Send requests, one after the other of `requests` and again from the first, and wait for their answers.

    Args:
        link: what carries them.
        requests: their bytes.
        arrivals: when each is due, ascending, in seconds; None: as soon as a connection is free (closed loop).
        end: seconds after which nothing more is due.
        grace_s: seconds after `end` until what has no answer counts as LATE.
        clock: seconds.

    Returns:
        Every request that was due, in the order of their ends.
    """
    start = clock()
    samples: list[Sample] = []
    waiting: dict[int, tuple[float, float]] = {}  # token: due, sent
    tokens = itertools.count()
    due_times = iter(arrivals) if arrivals is not None else None
    due = next(due_times, math.inf) if due_times is not None else 0.0
    while True:
        now = clock() - start
        if due_times is None and now >= end:
            due = math.inf
        if (due == math.inf and not waiting) or now >= end + grace_s:
            break
        bundle = 0
        while due <= now and link.free and bundle < _BUNDLE:
            bundle += 1
            token = next(tokens)
            sent = clock() - start
            link.send(requests[token % len(requests)], token)
            waiting[token] = (due if due_times is not None else sent, sent)
            if due_times is not None:
                due = next(due_times, math.inf)
        for token, status in link.poll(_patience(due, now, link.free, end, grace_s, bundle == _BUNDLE)):
            due_at, sent = waiting.pop(token)
            samples.append(Sample(due_at, sent, clock() - start, status))
    over = clock() - start
    samples += [Sample(due_at, sent, over, LATE) for due_at, sent in waiting.values()]
    if due_times is not None and due < math.inf:
        samples += [Sample(due_at, over, over, LATE) for due_at in itertools.chain([due], due_times)]
    return samples


def _patience(due: float, now: float, free: bool, end: float, grace_s: float, more: bool) -> float:
    """Return the seconds to wait for answers before something else has to be done."""
    if more:
        return 0.0
    until = end if now < end else end + grace_s
    if free and due > now:  # else an answer has to come first
        until = min(until, due)
    return max(0.0, until - now)


def tally(samples: Iterable[Sample], window: Window, rows: int, turns: int = 1) -> Tally:
    """Count what belongs to the window.

    Args:
        samples: of one turn, or of several with the same window.
        window: the part that counts.
        rows: of each request.
        turns: how many turns the samples are of.
    """
    ended = served = 0
    latencies, behind, errors = [], [], Counter[str]()
    for sample in samples:
        if window.start <= sample.done < window.end:
            ended += 1
            served += sample.status == OK
        if window.start <= sample.due < window.end:
            behind.append(sample.sent - sample.due)
            if sample.status == OK:
                latencies.append(sample.done - sample.due)
            else:
                errors[sample.status] += 1
    p50, p90, p99, top = (1e3 * value for value in percentiles(latencies, (50, 90, 99, 100)))
    (late,) = percentiles(behind, (99,))
    rate = served * rows / (turns * (window.end - window.start))
    return Tally(ended, rate, p50, p90, p99, top, 1e3 * late, dict(sorted(errors.items())))


def percentiles(values: Iterable[float], wanted: Sequence[float]) -> list[float]:
    """Return percentiles with linear interpolation between the values; NaN where there are none.

    Example:
        >>> percentiles([3, 1, 2], (50, 100))
        [2.0, 3.0]
    """
    ordered = sorted(values)
    if not ordered:
        return [math.nan for _ in wanted]
    found = []
    for percent in wanted:
        at = (len(ordered) - 1) * percent / 100
        low, share = int(at), at - int(at)
        high = min(low + 1, len(ordered) - 1)
        found.append(ordered[low] + share * (ordered[high] - ordered[low]))
    return found
