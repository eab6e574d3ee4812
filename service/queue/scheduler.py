"""Who waits and who runs: a bounded number of requests, a deadline for each, threads for all heavy work.

A request takes a place before its body is read, so that memory is bounded by places x body limit. What it wants run
waits in the queue of a form (one graph of one model); when a thread is free, the queue whose first entry waited
longest gives it one run's worth of entries, of any callers. The event loop waits for a model only where a thread
would take as long to wake: for a lone request whose run is short.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from augserve.errors import QueueFullError
from augserve.service.isolation import Piece, merge
from augserve.service.model.graph import Form
from augserve.service.queue.deadlines import Deadline, Deadlines
from augserve.service.queue.fairness import Entry
from augserve.service.queue.queues import Lane, Lanes, Run

AT_ONCE_S = 1e-3  # a run as short as this one may hold the event loop, as reading a body may

T = TypeVar("T")
Logits = npt.NDArray[np.float32]


class Ran(NamedTuple):
    """The logits float32 (K, classes) of a request; the seconds that it waited for a run, and that runs took."""

    logits: Logits
    queue_s: float
    run_s: float


class RunReport(NamedTuple):
    """One run: the model, how many requests and rows shared it, its seconds, and whether some of it failed.

    groups: rows of each statistics group, where not all rows are tracked.
    """

    model: str
    requests: int
    rows: int
    groups: list[int]
    seconds: float
    failed: bool


class _Request:
    """A request in the queue: its pieces come back one by one."""

    def __init__(self, form: Form, pieces: Sequence[Piece], caller: str) -> None:
        self.lane: Lane = (form, pieces[0].rows.shape[1:])
        self.arrived = time.perf_counter()
        self.began = self.ended = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.results: list[Logits | None] = [None] * len(pieces)
        self.entries = [Entry(len(p.ids), caller, self.arrived, (self, k, p)) for k, p in enumerate(pieces)]
        self.missing = len(pieces)

    def finish(self, index: int, result: Logits | Exception) -> None:
        if isinstance(result, Exception):
            if not self.done.done():
                self.done.set_exception(result)
            return
        self.results[index] = result
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.ended = time.perf_counter()
            self.done.set_result(None)


_Item = tuple[_Request, int, Piece]


class Scheduler:
    """Places for requests, and two pools of threads: one parses and writes, the other runs models.

    Args:
        workers: threads that run models, one run each.
        queue_limit: requests that may hold a place beyond the `workers` that run.
        max_batch_size: rows that fill a run.
        batch_timeout_s: the longest wait for more rows while other runs are in progress; a request that finds the
            server idle is run at once.
        report: called on the event loop after every run.
        place: called in each thread that runs models before its first run.
    """

    def __init__(
        self,
        workers: int,
        queue_limit: int,
        max_batch_size: int = 256,
        batch_timeout_s: float = 0.0,
        report: Callable[[RunReport], None] = lambda run: None,
        place: Callable[[], None] | None = None,
    ) -> None:
        self.deadlines = Deadlines()
        self.places = workers + queue_limit
        self.taken = 0
        self.lanes: Lanes[_Item] = Lanes(workers, max_batch_size, batch_timeout_s, lambda: self.taken <= 1)
        self._report = report
        self._queue_limit = queue_limit
        self._timer: asyncio.TimerHandle | None = None
        self._run_pool = ThreadPoolExecutor(workers, thread_name_prefix="augserve-run", initializer=place)
        self._codec_pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="augserve-codec")

    @property
    def waiting(self) -> int:
        """What waits for a run: requests, or parts of one."""
        return len(self.lanes)

    def enter(self) -> None:
        """Take a place for one request, until `leave`; on the event loop only.

        Raises:
            QueueFullError: every place is taken.
        """
        if self.taken >= self.places:
            raise QueueFullError(f"expected at most {self._queue_limit} waiting requests; got one more; try again")
        self.taken += 1

    def leave(self) -> None:
        """Give a place back."""
        self.taken -= 1

    async def work(self, job: Callable[[], T], deadline: Deadline | None = None) -> T:
        """Run `job` in a codec thread, unless its deadline passes before one is free.

        Raises:
            DeadlineError: no thread took the job in time.
        """

        def timely() -> T:
            if deadline is not None:
                deadline.check()
            return job()

        future = self._codec_pool.submit(timely)
        waiter = asyncio.wrap_future(future)
        if deadline is not None:
            done, _ = await asyncio.wait({waiter}, timeout=deadline.remaining())
            if not done and future.cancel():  # False once it runs: then its answer is waited for
                raise deadline.error("it still waited for a thread")
        return await waiter

    async def run(self, form: Form, pieces: Sequence[Piece], caller: str, deadline: Deadline) -> Ran:
        """Run the pieces of a request, each with whatever else waits for the same form.

        Args:
            form: the graph to run.
            pieces: what must not be parted; the logits come back in their order.
            caller: whose turn it takes.
            deadline: by which its first run must have begun.

        Raises:
            DeadlineError: it had not.
            Exception: whatever the model raises for this request alone.
        """
        here = self._may_run_here(form, pieces)
        if here:
            await asyncio.sleep(0)  # whoever has come meanwhile takes a place
            here = self._may_run_here(form, pieces)
        request = _Request(form, pieces, caller)
        self.lanes.add(request.lane, request.entries)
        self._dispatch(here=here)
        token = self.deadlines.watch(deadline, lambda: self._expire(request, deadline))
        try:
            await request.done
        finally:
            self.deadlines.forget(token)
            if request.missing:
                self.lanes.discard(request.lane, request.entries)
            request.entries = []  # they hold the request: so its rows and model are free at once
        parts = [part for part in request.results if part is not None]
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return Ran(logits, request.began - request.arrived, request.ended - request.began)

    def close(self) -> None:
        """Take no more jobs; those that run finish in their threads."""
        self.deadlines.close()
        for pool in (self._run_pool, self._codec_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def _expire(self, request: _Request, deadline: Deadline) -> None:
        if not request.began and not request.done.done():
            request.done.set_exception(deadline.error("its run had not begun"))

    def _may_run_here(self, form: Form, pieces: Sequence[Piece]) -> bool:
        """Whether nobody but this request is there, and its run too short to wake a thread for it."""
        rows = sum(len(piece.ids) for piece in pieces)
        return self.taken <= 1 and self.lanes.idle and form.seconds_of(rows) <= AT_ONCE_S

    def _dispatch(self, *, here: bool = False) -> None:
        """Start runs as long as there are free threads and queues that may run; on the event loop.

        Args:
            here: whether the first of them is done at once, in this thread.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while (run := self._next()) is not None:
            if not isinstance(run, Run):
                self._timer = loop.call_later(run, self._dispatch)
                return
            if here:
                here = False
                self._finished(run, *self._run(run))
            else:
                self._run_pool.submit(self._work, loop, run)

    def _next(self) -> Run[_Item] | float | None:
        run = self.lanes.take()
        if isinstance(run, Run):
            for request, _, _ in run.items:
                request.began = request.began or run.began
        return run

    def _work(self, loop: asyncio.AbstractEventLoop, run: Run[_Item]) -> None:
        """Run, and go on with what waits by then; in a thread."""
        following: Run[_Item] | float | None = run
        while isinstance(following, Run):
            run = following
            results, seconds = self._run(run)
            following = self._next()
            loop.call_soon_threadsafe(self._finished, run, results, seconds)

    def _run(self, run: Run[_Item]) -> tuple[list[Logits | Exception], float]:
        results = run_together(run.form, [piece for _, _, piece in run.items], alone=run.alone)
        seconds = time.perf_counter() - run.began
        self.lanes.end(run)
        return results, seconds

    def _finished(self, run: Run[_Item], results: list[Logits | Exception], seconds: float) -> None:
        for (request, index, _), result in zip(run.items, results, strict=True):
            request.finish(index, result)
        self._dispatch()
        requests = len({id(request) for request, _, _ in run.items})
        pieces = [piece for _, _, piece in run.items]
        groups = [size for piece in pieces if piece.tracked_weight.min() < 1 for size in piece.groups]
        failed = any(isinstance(result, Exception) for result in results)
        self._report(RunReport(run.form.model, requests, run.rows, groups, seconds, failed))


def run_together(form: Form, pieces: list[Piece], *, alone: bool = True) -> list[Logits | Exception]:
    """Run pieces together; where that fails, each by itself, so that a failure stays with its request."""
    try:
        logits = form.run(*merge(pieces), alone=alone)
        if len(pieces) == 1:
            return [logits]
        return list(np.split(logits, np.cumsum([len(piece.ids) for piece in pieces])[:-1]))
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        if len(pieces) == 1:
            return [error]
    return [result for piece in pieces for result in run_together(form, [piece], alone=alone)]
