"""Until when a request may wait, and what ends the waiting: one timer for all requests.

Each request waits twice, for its body and for its run. Most wait for little: a timer for each would cost more.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable

from augserve.errors import DeadlineError


class Deadline:
    """The moment until which a request may wait for its run, `seconds` after the request came."""

    __slots__ = ("ends", "seconds", "started")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = time.perf_counter()
        self.ends = self.started + seconds

    def remaining(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self.ends - time.perf_counter())

    def check(self) -> None:
        """Raise DeadlineError when no time is left."""
        if not self.remaining():
            raise self.error("its run had not begun")

    def error(self, what: str) -> DeadlineError:
        """Return the error to raise."""
        return DeadlineError(f"expected to run this request within {self.seconds:g} s; by then {what}; try again")


class Deadlines:
    """What waits on one event loop, each until its deadline.

    Example:
        >>> token = deadlines.watch(deadline, task.cancel)  # doctest: +SKIP
        >>> deadlines.forget(token)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[float, Callable[[], object]]] = {}
        self._tokens = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._armed = math.inf  # for which moment

    def watch(self, deadline: Deadline, expire: Callable[[], object]) -> int:
        """Call `expire` when the deadline passes, unless the token that comes back is forgotten before."""
        token = next(self._tokens)
        self._waiting[token] = deadline.ends, expire
        if deadline.ends < self._armed:
            self._arm(deadline.ends)
        return token

    def forget(self, token: int) -> None:
        """Watch no more."""
        self._waiting.pop(token, None)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, moment: float) -> None:
        self.close()
        seconds = max(0.0, moment - time.perf_counter())
        self._timer, self._armed = asyncio.get_running_loop().call_later(seconds, self._sweep), moment

    def _sweep(self) -> None:
        self._armed = math.inf
        now = time.perf_counter()
        for token in [token for token, (ends, _) in self._waiting.items() if ends <= now]:
            self._waiting.pop(token)[1]()
        if self._waiting:
            self._arm(min(ends for ends, _ in self._waiting.values()))
