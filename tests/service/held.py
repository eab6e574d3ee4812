"""A scheduler whose worker is held busy, so that what comes meanwhile shares the next runs in a known way."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from augserve.service.isolation import Piece, cut, group_rows
from augserve.service.model.graph import Form
from augserve.service.queue.deadlines import Deadline
from augserve.service.queue.scheduler import Ran, RunReport, Scheduler
from augserve.statistics import Statistics

LONG = 60.0


class FakeForm(Form):
    """A graph without a model: the logits of a row are its number, its group's sum and its weight.

    `runs` lists the rows of each run; `on_run` is called with them in the thread that runs, and may raise.
    """

    def __init__(
        self, name: str = "fake", *, merges: bool = True, on_run: Callable[[list[float]], None] = lambda rows: None
    ) -> None:
        self.model = name
        self.merges = merges
        self.beside = None
        self.fill = None
        self.on_run = on_run
        self.takes_s = math.inf
        self.runs: list[list[float]] = []

    def seconds_of(self, rows: int) -> float:
        return self.takes_s

    def run(
        self, rows: np.ndarray, ids: np.ndarray, tracked_weight: np.ndarray, *, alone: bool = True
    ) -> np.ndarray:
        assert len(rows) == len(ids) == len(tracked_weight)
        assert sorted(set(ids.tolist())) == list(range(int(ids.max()) + 1))
        numbers = rows.reshape(len(rows), -1)[:, 0]
        self.runs.append(numbers.tolist())
        self.on_run(numbers.tolist())
        sums = np.bincount(ids, weights=numbers)
        return np.stack([numbers, sums[ids], tracked_weight], axis=1).astype(np.float32)


class Held:
    """A scheduler, its reports, and a gate in front of its workers."""

    def __init__(self, **settings: Any) -> None:
        self.reports: list[RunReport] = []
        self.workers = settings.setdefault("workers", 1)
        self.scheduler = Scheduler(**{"queue_limit": 1000, **settings}, report=self.reports.append)

    def ask(self, form: Form, *pieces: Piece, caller: str = "", seconds: float = LONG) -> asyncio.Task[Ran]:
        """Begin a request."""
        return asyncio.create_task(self.scheduler.run(form, pieces, caller, Deadline(seconds)))

    async def behind(self, begin: Callable[[], Sequence[asyncio.Task[Ran]]]) -> list[Ran | BaseException]:
        """Begin requests while every worker is busy, let the workers go, and return what became of the requests."""
        with self.busy() as release:
            await asyncio.sleep(0)  # the workers' requests reach the queue, which is empty, and run
            tasks = begin()
            await asyncio.sleep(0)  # all others wait
            release()
            return await asyncio.gather(*tasks, return_exceptions=True)

    @contextmanager
    def busy(self) -> Iterator[Callable[[], None]]:
        """Hold all workers until the callable is called, or to the end."""
        gate = threading.Event()
        holders = [FakeForm("holder", on_run=lambda rows: gate.wait(LONG) and None) for _ in range(self.workers)]
        tasks = [self.ask(form, piece_of(0)) for form in holders]
        try:
            yield gate.set
        finally:
            gate.set()
            for task in tasks:
                task.add_done_callback(lambda done: done.cancelled() or done.exception())


def piece_of(*numbers: float, shape: tuple[int, ...] = (1, 1, 1), weight: float | None = 0.0) -> Piece:
    """Rows of these numbers as one statistics group; a weight of None leaves each row to itself, tracked."""
    rows = np.broadcast_to(np.array(numbers, np.float32).reshape(-1, 1, 1, 1), (len(numbers), *shape))
    statistics = Statistics("tracked") if weight is None else Statistics("blend", tracked_weight=weight)
    (piece,) = cut(rows, group_rows(len(rows), statistics), len(rows))
    return piece


def answers(*numbers: float, weight: float = 0.0) -> list[list[float]]:
    """What FakeForm answers to a piece, worked out by hand."""
    return [[number, sum(numbers), weight] for number in numbers]


def act(body: Callable[..., Coroutine[Any, Any, None]], **settings: Any) -> Held:
    """Run `body(held)` on an event loop of its own and close the scheduler."""

    async def go() -> Held:
        held = Held(**settings)
        try:
            await body(held)
        finally:
            held.scheduler.close()
        return held

    return asyncio.run(go())
