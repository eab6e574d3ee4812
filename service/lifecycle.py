"""The states of one server: starting (models load), ready, draining (accepted requests finish)."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from augserve.errors import AugserveError, ModelFileError, NotReadyError
from augserve.service.body.rows import Limits
from augserve.service.model.placement import placing, usable_cores
from augserve.service.model.predictor import Job, Predictor
from augserve.service.model.repository import Repository, check_paths
from augserve.service.queue.deadlines import Deadline
from augserve.service.queue.memory import give_back_freed_memory
from augserve.service.queue.scheduler import RunReport, Scheduler
from augserve.service.settings import Settings
from augserve.service.watch.metrics import Metrics

logger = logging.getLogger(__name__)

LOAD_GRACE_S = 2.0  # models that load in this time are never seen as not ready
TIDY_S = 5.0  # between two looks at what was freed, where the folders are not looked at

Logits = npt.NDArray[np.float32]


class Outcome(NamedTuple):
    """A job and its logits, float32 (K, classes); with `compare` also those of tracked statistics; seconds."""

    job: Job
    logits: Logits
    tracked: Logits | None
    queue_s: float
    run_s: float


class Service:
    """What the routes share: the settings, the models once they are there, and the scheduler.

    Args:
        settings: the operator's choices; the models are opened by `load`, or when the application starts.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.models = Repository(settings.model, self._open, self._changed)
        self.limits = Limits(settings.max_rows, settings.max_image_pixels)
        self.scheduler = Scheduler(
            settings.runs_at_a_time(),
            settings.queue_limit,
            settings.rows_of_a_run(),
            settings.batch_timeout_s,
            report=self._report,
            place=placing(usable_cores()) if settings.threads_beside() else None,
        )
        self.metrics.watch_queue(lambda: self.scheduler.waiting)
        self.metrics.watch_ready(self._takes)
        self.accepted = 0
        self._draining = False
        self._failed = False
        self._loaded = False
        self._freed = threading.Event()  # much memory has been let go of since some was given back
        self._loading: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Open the models, in the calling thread.

        Raises:
            ModelFileError: nothing to serve; of files that were named, any that does not open or fails its check.
            ConfigurationError: a provider that there is not, or that does not start.
        """
        check_paths(self.settings.model)
        self.models.refresh(strict=not self.models.has_folders)
        if not len(self.models):
            reasons = "; ".join(f"{status.name}: {status.reason}" for status in self.models.index())
            where = ", ".join(map(str, self.settings.model))
            raise ModelFileError(f"{where}: expected a model that can be served; {reasons or 'found none'}")
        self._loaded = True
        self.metrics.ready()

    async def start(self) -> None:
        """Begin to load the models, unless they are there, and give them a moment: small ones are then ready."""
        if not self._loaded:
            self._loading = asyncio.get_running_loop().create_task(self._load())
            await asyncio.wait({self._loading}, timeout=LOAD_GRACE_S)
        self._tidying = asyncio.get_running_loop().create_task(self._tidy())

    def drain(self) -> None:
        """Refuse new requests from now on; safe in a signal handler."""
        self._draining = True

    async def drained(self, give_up: Callable[[], bool]) -> None:
        """Wait until the accepted requests are answered, or `give_up` returns True."""
        while self.accepted and not give_up():
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Refuse new requests and let go of the threads."""
        self.drain()
        if self._tidying is not None:
            self._tidying.cancel()
        tasks = [task for task in (self._loading, self._tidying) if task is not None]
        if tasks:
            await asyncio.wait(tasks)
        self.scheduler.close()

    def ready(self) -> None:
        """Say that requests are taken.

        Raises:
            NotReadyError: starting, draining, or no model could be loaded.
        """
        if self._draining:
            raise NotReadyError("expected a request before the server stops; it is draining; ask another server")
        if self._failed:
            raise NotReadyError("the model could not be loaded; the server's log says why")
        if not self._loaded:
            raise NotReadyError("the model is still loading; try again")

    def taking(self) -> AbstractContextManager[None]:
        """Count a request as accepted, so that draining waits for it, and give it one of the bounded places.

        Raises:
            NotReadyError: as `ready`.
            QueueFullError: every place is taken.
        """
        return _Taking(self)

    async def execute(self, predictor: Predictor, job: Job, deadline: Deadline, caller: str) -> Outcome:
        """Run a job, together with those of others.

        Args:
            predictor: the version that prepared it.
            job: rows, groups and settings.
            deadline: by which the first run must have begun.
            caller: whose turn it takes.

        Raises:
            DeadlineError: it had not.
            PayloadTooLargeError: a statistics group larger than a run may be.
        """
        limit, fill = self.settings.max_batch_size, self.settings.rows_of_a_run()
        compares = job.settings.compare and job.statistics.mode != "tracked"
        tracked = predictor.as_tracked(job) if compares else None  # refused before anything is begun
        form, pieces = predictor.form_of(job.statistics), predictor.pieces(job, limit, fill)
        running = self.scheduler.run(form, pieces, caller, deadline)
        if tracked is None:
            ran = await running
            self.metrics.queued(predictor.name, ran.queue_s)
            return Outcome(job, ran.logits, ran.logits if job.settings.compare else None, ran.queue_s, ran.run_s)
        beside = self.scheduler.run(
            predictor.form_of(tracked.statistics), predictor.pieces(tracked, limit, fill), caller, deadline
        )
        ran, compared = await asyncio.gather(running, beside)
        self.metrics.queued(predictor.name, ran.queue_s)
        queue_s, run_s = max(ran.queue_s, compared.queue_s), ran.run_s + compared.run_s
        return Outcome(job, ran.logits, compared.logits, queue_s, run_s)

    def _takes(self) -> bool:
        return self._loaded and not self._draining

    def _open(self, path: Path, name: str, version: str) -> Predictor:
        settings = self.settings
        predictor = Predictor.open(
            path,
            providers=settings.providers,
            threads=settings.threads,
            threads_beside=settings.threads_beside(),
            name=name,
            version=version,
            fold=settings.fold_tracked,
            fall_back=settings.provider_fallback,
        )
        predictor.warm_up(settings.warmup_rows())
        predictor.fit_runs(settings.rows_of_a_run() if settings.preferred_batch_size is None else None)
        for form in {predictor.adaptive, predictor.tracked}:  # requests may hold it for long after it was replaced
            weakref.finalize(form, self._freed.set).atexit = False
        return predictor

    def _changed(self, name: str, version: str, serves: bool) -> None:
        self._freed.set()
        (self.metrics.loaded if serves else self.metrics.unloaded)(name, version)

    def _report(self, run: RunReport) -> None:
        self.metrics.run(run.model, run.requests, run.rows, run.groups, run.seconds)
        if run.failed:
            self.metrics.run_error(run.model)

    async def _load(self) -> None:
        try:
            await asyncio.to_thread(self.load)
        except AugserveError as error:
            self._failed = True
            logger.error("%s", error)  # noqa: TRY400 - says all there is to say
        except Exception:  # whatever went wrong, the server answers 503 and the log says why
            self._failed = True
            logger.exception("loading %s failed", self.settings.model)

    async def _tidy(self) -> None:
        """Look after the memory and, where they are to be looked at, the folders."""
        poll_s = self.settings.repository_poll_s if self.models.has_folders else 0
        while True:
            await asyncio.sleep(poll_s or TIDY_S)
            if self._freed.is_set():
                self._freed.clear()
                await asyncio.to_thread(give_back_freed_memory)
            if poll_s:
                await self._refresh()

    async def _refresh(self) -> None:
        try:
            await asyncio.to_thread(self.models.refresh)
        except Exception as error:  # a folder that cannot be read just now: what serves goes on
            logger.error("the repository could not be read: %s", error)  # noqa: TRY400


class _Taking(AbstractContextManager[None]):
    """The place of one request, from `with` to its end."""

    __slots__ = ("_service",)

    def __init__(self, service: Service) -> None:
        self._service = service

    @override
    def __enter__(self) -> None:
        self._service.ready()
        self._service.scheduler.enter()
        self._service.accepted += 1

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._service.accepted -= 1
        self._service.scheduler.leave()
