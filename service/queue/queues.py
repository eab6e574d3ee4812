"""Who runs next: the queues of all forms, and the runs in progress; safe in any thread.

A thread that has run takes the next run itself: while the event loop is busy with the answers, the model goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from augserve.service.model.graph import Form
from augserve.service.queue.fairness import Entry, FairQueue, when_to_run

T = TypeVar("T")
Lane = tuple[Form, tuple[int, ...]]  # rows of one shape for one form can share a run


class Run(NamedTuple, Generic[T]):
    """What a thread is to run, since when; `alone`: with the cores of all workers, and nothing beside it."""

    form: Form
    items: list[T]
    rows: int
    alone: bool
    began: float


class Lanes(Generic[T]):
    """Entries that wait for a run of their form, and how many runs there may be.

    Args:
        workers: runs in progress at a time.
        max_batch_size: rows that fill a run.
        window_s: the longest wait for more rows while other runs are in progress.
        lone: whether no other request is on its way; asked when one finds nothing that runs or waits.
    """

    def __init__(
        self, workers: int, max_batch_size: int, window_s: float, lone: Callable[[], bool] = lambda: True
    ) -> None:
        self.running = 0
        self._lone = lone
        self._workers = workers
        self._limit = max_batch_size
        self._window_s = window_s
        self._lock = threading.Lock()
        self._rows = 0  # in progress
        self._alone = False  # whether the run in progress takes all cores
        self._queues: dict[Lane, FairQueue[T]] = {}
        self._found_idle: set[Lane] = set()

    def __len__(self) -> int:
        with self._lock:
            return self._waiting()

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        with self._lock:
            return not self.running and not self._queues

    def add(self, lane: Lane, entries: Sequence[Entry[T]]) -> None:
        """Let entries wait."""
        with self._lock:
            queue = self._queues.setdefault(lane, FairQueue())
            if not queue.rows and not self.running:
                self._found_idle.add(lane)
            for entry in entries:
                queue.add(entry)

    def discard(self, lane: Lane, entries: Sequence[Entry[T]]) -> None:
        """Take entries out, where they still wait."""
        with self._lock:
            queue = self._queues.get(lane)
            if queue is not None:
                for entry in entries:
                    queue.discard(entry)
                self._tidy(lane, queue)

    def take(self) -> Run[T] | float | None:
        """Begin a run, if there is a free worker and something to run; `end` ends it.

        Returns:
            The run; or the seconds until a queue's window closes; or None.
        """
        with self._lock:
            if self.running == self._workers or self._alone or not self._queues:
                return None
            lane = min(self._queues, key=self._due)
            now = time.perf_counter()
            wait = self._due(lane) - now
            return wait if wait > 0 else self._begin(lane, self._queues[lane], now)

    def end(self, run: Run[T]) -> None:
        """Make room for the next run."""
        with self._lock:
            self.running -= 1
            self._rows -= run.rows
            self._alone = False

    def _due(self, lane: Lane) -> float:
        queue = self._queues[lane]
        return when_to_run(queue.rows, queue.oldest(), self._most(lane), self._window_s, lane in self._found_idle)

    def _most(self, lane: Lane) -> int:
        form = lane[0]
        return (form.fill or self._limit) if form.merges else 1

    def _begin(self, lane: Lane, queue: FairQueue[T], now: float) -> Run[T]:
        limit, waiting = self._most(lane), queue.rows
        if lane[0].beside is not None:
            self._alone = not self.running and self._waiting() == 1 and self._lone()
            limit = min(limit, -(-(waiting + self._rows) // self._workers))  # runs side by side are of a size
        items = queue.take(limit)
        rows = waiting - queue.rows
        self._found_idle.discard(lane)
        self._tidy(lane, queue)
        self.running += 1
        self._rows += rows
        return Run(lane[0], items, rows, self._alone or self._workers == 1, now)

    def _tidy(self, lane: Lane, queue: FairQueue[T]) -> None:
        if not queue.rows:
            del self._queues[lane]
            self._found_idle.discard(lane)

    def _waiting(self) -> int:
        return sum(map(len, self._queues.values()))
