"""POST /predict: an adapter between HTTP and the data plane."""

from __future__ import annotations

import time
from typing import cast

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from augserve.service.body.parse import (
    JSON,
    ParsedBody,
    check_headers,
    header_of,
    parse,
    parses_at_once,
    read_body,
)
from augserve.service.http.errors import answer_error
from augserve.service.http.openapi import PREDICT_DESCRIPTION, RESPONSES
from augserve.service.lifecycle import Service
from augserve.service.model.predictor import Job
from augserve.service.queue.deadlines import Deadline
from augserve.service.schemas import Answer, Timing
from augserve.service.watch.observe import note, note_run

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
            body = await answer(request, self._service)
        except Exception as error:  # as the handlers that FastAPI would call
            response = await answer_error(request, error)
            await response(scope, receive, send)
            return
        headers = [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@router.post("/predict", response_model=Answer, responses=RESPONSES, description=PREDICT_DESCRIPTION)
async def predict(request: Request) -> Response:
    """Answer one request; the docs show the body's fields."""
    body = await answer(request, cast("Service", request.app.state.service))
    return Response(body, media_type=JSON)


async def answer(request: Request, service: Service) -> bytes:
    """Answer one request with JSON; errors are the caller's."""
    deadline = Deadline(service.settings.request_timeout_s)
    with service.taking():
        media_type = check_headers(request, service.settings.max_body_bytes)
        scheduler = service.scheduler
        received = [
            await read_body(request, service.settings.max_body_bytes, deadline, service.scheduler.deadlines)
        ]
        query = request.query_params.multi_items() if request.scope["query_string"] else []

        def parse_body() -> ParsedBody:
            return parse(received.pop(), header_of(request, b"content-type"), query)

        at_once = parses_at_once(media_type, received[0])
        parsed = parse_body() if at_once else await scheduler.work(parse_body, deadline)
        note(request.scope, model=parsed.settings.model)
        predictor = service.models.get(parsed.settings.model)
        # Before an image is decoded: refuses what the model does not serve.
        statistics = predictor.statistics(parsed.settings)

        def prepare() -> Job:
            rows = parsed.make_rows(predictor.manifest, service.limits, deadline.check)
            return predictor.prepare(rows, parsed.settings, statistics)

        at_once = at_once and not parsed.images
        job = prepare() if at_once else await scheduler.work(prepare, deadline)
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

        return write() if outcome.logits.size <= ENCODED_AT_ONCE else await scheduler.work(write)


def caller_of(request: Request) -> str:
    """Return whose turn in the queue a request takes: the key's name, else the address that it came from."""
    named = request.scope.get("state", {}).get("caller")
    return str(named) if named else request.client.host if request.client else ""
