"""The states of one server: starting (the model loads), ready, draining (accepted requests finish)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from augserve.errors import AugserveError, NotReadyError
from augserve.service.dataplane import Predictor
from augserve.service.rows import Limits
from augserve.service.scheduler import Scheduler
from augserve.service.settings import Settings

logger = logging.getLogger(__name__)

LOAD_GRACE_S = 2.0  # a model that loads in this time is never seen as not ready


class Service:
    """What the routes share: the settings, the model once it is there, and the scheduler.

    Args:
        settings: the operator's choices.
        predictor: a model that is already open; None loads settings.model at `start`.
    """

    def __init__(self, settings: Settings, predictor: Predictor | None = None) -> None:
        self.settings = settings
        self.predictor = predictor
        self.limits = Limits(settings.max_rows, settings.max_image_pixels)
        self.scheduler = Scheduler(settings.workers, settings.queue_limit)
        self.accepted = 0
        self._draining = False
        self._failed = False
        self._loading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to load the model, unless it is there, and give it a moment: a small one is ready on return."""
        if self.predictor is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())
            await asyncio.wait({self._loading}, timeout=LOAD_GRACE_S)

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
        if self._loading is not None:
            await asyncio.wait({self._loading})
        self.scheduler.close()

    def ready(self) -> Predictor:
        """Return the model.

        Raises:
            NotReadyError: starting, draining, or a model that could not be loaded.
        """
        if self._draining:
            raise NotReadyError("expected a request before the server stops; it is draining; ask another server")
        if self._failed:
            raise NotReadyError("the model could not be loaded; the server's log says why")
        if self.predictor is None:
            raise NotReadyError("the model is still loading; try again")
        return self.predictor

    @contextmanager
    def accept(self) -> Iterator[Predictor]:
        """Count a request as accepted, so that draining waits for it.

        Raises:
            NotReadyError: as `ready`.
        """
        predictor = self.ready()
        self.accepted += 1
        try:
            yield predictor
        finally:
            self.accepted -= 1

    async def _load(self) -> None:
        try:
            self.predictor = await asyncio.to_thread(open_predictor, self.settings)
        except AugserveError as error:
            self._failed = True
            logger.error("%s", error)  # noqa: TRY400 - says all there is to say
        except Exception:  # whatever went wrong, the server answers 503 and the log says why
            self._failed = True
            logger.exception("loading %s failed", self.settings.model)


def open_predictor(settings: Settings) -> Predictor:
    """Open the model that the settings name; errors are those of `Predictor.open`."""
    return Predictor.open(settings.model, providers=settings.providers, threads=settings.threads)
