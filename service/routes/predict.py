"""POST /predict: an adapter between HTTP and the data plane."""

from __future__ import annotations

import time
from typing import cast

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from augserve.service.bodies import ParsedBody, check_headers, parse_form, parse_json, read_body
from augserve.service.dataplane import Job, Predictor
from augserve.service.lifecycle import Service
from augserve.service.openapi import PREDICT_DESCRIPTION, RESPONSES
from augserve.service.scheduler import Deadline
from augserve.service.schemas import Answer, Timing

router = APIRouter()


@router.post("/predict", response_model=Answer, responses=RESPONSES, description=PREDICT_DESCRIPTION)
async def predict(request: Request) -> Response:
    """Answer one request; the docs show the body's fields."""
    service = cast("Service", request.app.state.service)
    settings = service.settings
    deadline = Deadline(settings.request_timeout_s)
    with service.accept() as predictor:
        media_type = check_headers(request, settings.max_body_bytes)
        content_type = request.headers["content-type"]
        with service.scheduler.place():
            body = await read_body(request, settings.max_body_bytes, deadline)

            def prepare() -> Job:
                json = media_type == "application/json"
                parsed = parse_json(body) if json else parse_form(body, content_type)
                return _job(parsed, service, predictor, deadline)

            job = await service.scheduler.decode(prepare, deadline)
            timed = await service.scheduler.run(lambda: predictor.run(job), deadline)

            def write() -> bytes:
                timing = Timing(queue=1e3 * timed.queue_s, run=1e3 * timed.run_s, total=0.0)
                answer = predictor.answer(job, timed.result, timing)
                answer["timing_ms"]["total"] = 1e3 * (time.perf_counter() - deadline.started)
                return orjson.dumps(answer)

            return Response(await service.scheduler.encode(write), media_type="application/json")


def _job(parsed: ParsedBody, service: Service, predictor: Predictor, deadline: Deadline) -> Job:
    predictor.statistics(parsed.settings)  # refuses what the model does not serve before any image is decoded
    rows = parsed.make_rows(predictor.manifest, service.limits, deadline.check)
    return predictor.prepare(rows, parsed.settings)
