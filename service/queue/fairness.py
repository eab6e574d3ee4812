"""Which requests share the next run: a queue fair between callers, without a clock or a thread of its own.

Callers take turns: each run takes the first entry of every caller in turn, as long as there is room, and whoever
was served goes to the end. An entry that does not fit is passed over and keeps its turn; alone, it always fits.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Entry(NamedTuple, Generic[T]):
    """Something to run: its number of rows, whose it is, when it arrived (seconds, any clock), and what it is."""

    size: int
    caller: str
    arrived: float
    item: T


class FairQueue(Generic[T]):
    """Entries that wait for a run.

    Example:
        >>> queue = FairQueue()
        >>> for caller, size in [("a", 2), ("a", 2), ("b", 1)]:
        ...     queue.add(Entry(size, caller, 0.0, f"{caller}{size}"))
        >>> queue.take(4)
        ['a2', 'b1']
    """

    def __init__(self) -> None:
        self.rows = 0
        self._waiting: dict[str, deque[Entry[T]]] = {}  # by caller, whose turn is next first

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, entry: Entry[T]) -> None:
        """Put an entry behind those of its caller."""
        self._waiting.setdefault(entry.caller, deque()).append(entry)
        self.rows += entry.size

    def discard(self, entry: Entry[T]) -> None:
        """Take an entry out, if it still waits."""
        waiting = self._waiting.get(entry.caller, deque())
        if any(one is entry for one in waiting):
            self._waiting[entry.caller] = deque(one for one in waiting if one is not entry)
            self.rows -= entry.size
            if not self._waiting[entry.caller]:
                del self._waiting[entry.caller]

    def oldest(self) -> float:
        """Return when the entry that waits longest arrived; there must be one."""
        return min(waiting[0].arrived for waiting in self._waiting.values())

    def take(self, limit: int) -> list[T]:
        """Take out what shares the next run: entries of at most `limit` rows together, or a single larger one."""
        taken: list[T] = []
        room = limit
        served = True
        while served:
            served = False
            for caller in list(self._waiting):
                waiting = self._waiting[caller]
                if taken and waiting[0].size > room:
                    continue
                entry = waiting.popleft()
                taken.append(entry.item)
                room -= entry.size
                self.rows -= entry.size
                served = True
                del self._waiting[caller]
                if waiting:
                    self._waiting[caller] = waiting
                if room <= 0:
                    return taken
        return taken


def when_to_run(rows: int, oldest: float, limit: int, window_s: float, found_idle: bool) -> float:
    """Return the moment from which a queue may be run, on the clock of `oldest`.

    Args:
        rows: that wait.
        oldest: when the first of them arrived: then the window opened.
        limit: rows that fill a run.
        window_s: the longest wait for more rows.
        found_idle: whether nothing ran when the first of them arrived: then nothing is waited for.
    """
    return oldest if found_idle or rows >= limit else oldest + window_s
