"""POST /predict: an adapter between HTTP and the data plane."""

from __future__ import annotations

import time
from typing import cast

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from augserve.service.bodies import ParsedBody, check_headers, parse, parses_at_once, read_body
from augserve.service.dataplane import Job
from augserve.service.http_errors import answer_error
from augserve.service.lifecycle import Service
from augserve.service.observe import note, note_run
from augserve.service.openapi import PREDICT_DESCRIPTION, RESPONSES
from augserve.service.scheduler import Deadline
from augserve.service.schemas import Answer, Timing

ENCODED_AT_ONCE = 2**13  # numbers in an answer: beyond, a thread writes it

router = APIRouter()


class ShortCut:
    """An ASGI application that answers POST /predict itself and hands everything else on.

    The way through its layers costs as much as the run of a small model; FastAPI knows the path for the documents.

    Args:
        app: what answers the other requests.
        service: what the route works with.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever goes wrong with it."""
        if scope["type"] != "http" or scope["path"] != "/predict" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await answer(request, self._service)
        except Exception as error:  # as the handlers that FastAPI would call
            response = await answer_error(request, error)
        await response(scope, receive, send)


@router.post("/predict", response_model=Answer, responses=RESPONSES, description=PREDICT_DESCRIPTION)
async def predict(request: Request) -> Response:
    """Answer one request; the docs show the body's fields."""
    return await answer(request, cast("Service", request.app.state.service))


async def answer(request: Request, service: Service) -> Response:
    """Answer one request; errors are the caller's."""
    deadline = Deadline(service.settings.request_timeout_s)
    with service.taking():
        media_type = check_headers(request, service.settings.max_body_bytes)
        received = [await read_body(request, service.settings.max_body_bytes, deadline)]
        query = request.query_params.multi_items()

        def parse_body() -> ParsedBody:
            return parse(received.pop(), request.headers["content-type"], query)

        at_once = parses_at_once(media_type, received[0])
        parsed = await service.prepare(parse_body, deadline, inline=at_once)
        note(request.scope, model=parsed.settings.model)
        predictor = service.models.get(parsed.settings.model)
        predictor.statistics(parsed.settings)  # refuses what the model does not serve before an image is decoded

        def prepare() -> Job:
            rows = parsed.make_rows(predictor.manifest, service.limits, deadline.check)
            return predictor.prepare(rows, parsed.settings)

        job = await service.prepare(prepare, deadline, inline=at_once and not parsed.images)
        note(
            request.scope,
            model=predictor.name,
            mode=job.statistics.mode,
            rows=len(job.rows),
            groups=len(job.groups.sizes),
        )
        outcome = await service.execute(predictor, job, deadline, caller_of(request))
        note_run(request.scope, outcome.queue_s, outcome.run_s)

        def write() -> bytes:
            timing = Timing(queue=1e3 * outcome.queue_s, run=1e3 * outcome.run_s, total=0.0)
            content = predictor.answer(job, outcome.logits, timing, outcome.tracked)
            content["timing_ms"]["total"] = 1e3 * (time.perf_counter() - deadline.started)
            return orjson.dumps(content)

        small = outcome.logits.size <= ENCODED_AT_ONCE
        written = write() if small else await service.scheduler.work(write)
        return Response(written, media_type="application/json")


def caller_of(request: Request) -> str:
    """Return whose turn in the queue a request takes: the key's name, else the address that it came from."""
    named = request.scope.get("state", {}).get("caller")
    return str(named) if named else request.client.host if request.client else ""
