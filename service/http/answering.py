"""The one flow of a request that asks a model: parse, prepare, execute, write.

    check       its headers                                   the codec's
    read        its body, capped and in time                  body.parse
    parse       the body, as far as no model is needed        the codec's; at once or in a thread
    prepare     checked rows, cut into statistics groups      the codec's, with the model
    execute     its passes, shared with whoever waits         lifecycle, queue
    write       the answer                                    the codec's

A protocol is a `Codec`: /predict's in `routes.predict`, the Open Inference Protocol's in `routes.infer`. Errors are
raised; `errors` answers them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import cast

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from augserve.service.body.parse import check_length, read_body
from augserve.service.body.rows import Limits
from augserve.service.lifecycle import Outcome, Service
from augserve.service.model.predictor import Job, Predictor
from augserve.service.queue.deadlines import Deadline
from augserve.service.watch.observe import note, note_run

ENCODED_AT_ONCE = 2**13  # numbers in an answer: beyond, a thread writes it


class Codec(ABC):
    """How one protocol puts a question and its answer; an object for each request.

    Args:
        model: whom the address asks; None where the body says it, which `parse` then sets.
        version: of that model; None means the highest.
    """

    decodes_images = False  # once the body is parsed: then preparing rows takes time

    def __init__(self, model: str | None = None, version: str | None = None) -> None:
        self.model, self.version = model, version

    @abstractmethod
    def check(self, request: Request) -> None:
        """Look at headers and address, and refuse a request before its body is read."""

    @abstractmethod
    def is_quick(self, size: int) -> bool:
        """Return whether a body of so many bytes takes so little time that the event loop may read it."""

    @abstractmethod
    def parse(self, body: bytes) -> None:
        """Take in the body."""

    @abstractmethod
    def prepare(self, predictor: Predictor, limits: Limits, check: Callable[[], None]) -> Job:
        """Return what is to be run; `check` raises once there is no time left."""

    @abstractmethod
    def write(self, predictor: Predictor, outcome: Outcome, elapsed_ms: Callable[[], float]) -> Reply:
        """Return the answer; `elapsed_ms` are those since the request came."""


async def answer(codec: Codec, request: Request) -> Reply:
    """Answer one request; errors are the caller's."""
    service = service_of(request)
    settings, scheduler = service.settings, service.scheduler
    deadline = Deadline(settings.request_timeout_s)
    if codec.model is not None:
        note(request.scope, model=codec.model)
    with service.taking():
        known = None if codec.model is None else service.models.get(codec.model, codec.version)
        codec.check(request)
        check_length(request, settings.max_body_bytes)
        body = [await read_body(request, settings.max_body_bytes, deadline, scheduler.deadlines)]
        quick = codec.is_quick(len(body[0]))

        def parse() -> None:
            codec.parse(body.pop())  # it is held no longer

        parse() if quick else await scheduler.work(parse, deadline)
        if known is None:
            note(request.scope, model=codec.model)
        predictor = known or service.models.get(codec.model, codec.version)

        def prepare() -> Job:
            return codec.prepare(predictor, service.limits, deadline.check)

        job = prepare() if quick and not codec.decodes_images else await scheduler.work(prepare, deadline)
        shown = {"mode": job.statistics.mode, "rows": len(job.rows), "groups": len(job.groups.sizes)}
        note(request.scope, model=predictor.name, **shown)
        outcome = await service.execute(predictor, job, deadline, _caller_of(request))
        note_run(request.scope, outcome.queue_s, outcome.run_s)

        def write() -> Reply:
            return codec.write(predictor, outcome, lambda: 1e3 * (time.perf_counter() - deadline.started))

        return write() if outcome.logits.size <= ENCODED_AT_ONCE else await scheduler.work(write)


class Reply(Response):
    """Bytes of a media type: a starlette response without what it would look for in each."""

    def __init__(self, body: bytes, media_type: str, headers: Mapping[str, str] | None = None) -> None:
        self.status_code, self.background, self.body = 200, None, body
        self.raw_headers = [(b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body))]
        self.raw_headers += [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]


class DirectRoute(APIRoute):
    """A route that calls its endpoint with the request and the parts of its path, and nothing else.

    What FastAPI does on the way to an endpoint takes as long as the pass of a small model; it documents the route.
    """

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # refuses it
            return
        response = await self.endpoint(Request(scope, receive, send), **scope["path_params"])
        await response(scope, receive, send)


def service_of(request: Request) -> Service:
    """Return what the routes of an application share."""
    return cast("Service", request.app.state.service)


def _caller_of(request: Request) -> str:
    """Return whose turn in the queue a request takes: the key's name, else the address that it came from."""
    named = request.scope.get("state", {}).get("caller")
    return str(named) if named else request.client.host if request.client else ""
