"""Who waits and who runs: a bounded number of requests, a deadline for each, threads for all heavy work.

A request takes a place before its body is read, so that memory is bounded by places x body limit. Each
request is a run of its own. The event loop only hands work over.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from augserve.errors import DeadlineError, QueueFullError

T = TypeVar("T")


class Deadline:
    """The moment until which a request may wait for its run, `seconds` after the request came."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = time.perf_counter()

    def remaining(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self.started + self.seconds - time.perf_counter())

    def check(self) -> None:
        """Raise DeadlineError when no time is left."""
        if not self.remaining():
            raise self.error("its run had not begun")

    def error(self, what: str) -> DeadlineError:
        """Return the error to raise."""
        return DeadlineError(f"expected to run this request within {self.seconds:g} s; by then {what}; try again")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """What a job returned, the seconds that it waited for a thread, and the seconds that it took."""

    result: T
    queue_s: float
    run_s: float


class Scheduler:
    """Places for requests, and two pools of threads: one parses and writes, the other runs the model.

    Args:
        workers: threads that run the model.
        queue_limit: requests that may hold a place beyond the `workers` that run.
    """

    def __init__(self, workers: int, queue_limit: int) -> None:
        self.places = workers + queue_limit
        self.taken = 0
        self._queue_limit = queue_limit
        self._run_pool = ThreadPoolExecutor(workers, thread_name_prefix="augserve-run")
        self._codec_pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="augserve-codec")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for one request; on the event loop only.

        Raises:
            QueueFullError: every place is taken.
        """
        if self.taken >= self.places:
            raise QueueFullError(f"expected at most {self._queue_limit} waiting requests; got one more; try again")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def decode(self, job: Callable[[], T], deadline: Deadline) -> T:
        """Run `job` in a codec thread, unless its deadline passes first."""
        return (await _submit(self._codec_pool, job, deadline)).result

    async def run(self, job: Callable[[], T], deadline: Deadline) -> Timed[T]:
        """Run `job` in a model thread, unless its deadline passes first.

        Raises:
            DeadlineError: no thread took the job in time.
        """
        return await _submit(self._run_pool, job, deadline)

    async def encode(self, job: Callable[[], T]) -> T:
        """Run `job` in a codec thread; a request that has run is answered, however late."""
        return await asyncio.get_running_loop().run_in_executor(self._codec_pool, job)

    def close(self) -> None:
        """Take no more jobs; those that run finish in their threads."""
        for pool in (self._run_pool, self._codec_pool):
            pool.shutdown(wait=False, cancel_futures=True)


async def _submit(pool: ThreadPoolExecutor, job: Callable[[], T], deadline: Deadline) -> Timed[T]:
    submitted = time.perf_counter()

    def timed() -> Timed[T]:
        deadline.check()
        began = time.perf_counter()
        result = job()
        return Timed(result, began - submitted, time.perf_counter() - began)

    future = pool.submit(timed)
    waiter = asyncio.wrap_future(future)
    done, _ = await asyncio.wait({waiter}, timeout=deadline.remaining())
    if not done and future.cancel():  # False once it runs: then its answer is waited for
        raise deadline.error("it still waited for a thread")
    return await waiter
