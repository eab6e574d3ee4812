"""The Open Inference Protocol v2 (/v2/...): adapters between HTTP, the protocol's messages and the data plane.

A request is read whatever its Content-Type: tritonclient sends none. Answers are not compressed.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from augserve.errors import ConfigurationError, InputError, MalformedRequestError, ModelFileError
from augserve.service.body.parse import INLINE_BYTES, JSON, NPY, check_length, read_body
from augserve.service.http.openapi import RESPONSES
from augserve.service.http.routes.predict import ENCODED_AT_ONCE, caller_of
from augserve.service.lifecycle import Service
from augserve.service.model.predictor import Job, Predictor
from augserve.service.queue.deadlines import Deadline
from augserve.service.schemas import ErrorBody, Timing, shorten
from augserve.service.v2.metadata import model_metadata, server_metadata
from augserve.service.v2.openapi import INFER
from augserve.service.v2.request import InferRequest, parse_infer
from augserve.service.v2.response import Encoded, encode_response
from augserve.service.watch.observe import note, note_run

MAX_CONTROL_BYTES = 2**16
HEADER_LENGTH = "Inference-Header-Content-Length"

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody, "description": "not_ready"}}
_NO_MODEL: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorBody, "description": "unknown_model"},
    **_NOT_READY,
}

router = APIRouter(tags=["Open Inference Protocol v2"])
control = APIRouter(tags=["Open Inference Protocol v2"])  # only where the operator allows it


@router.get("/v2")
async def server(request: Request) -> dict[str, Any]:
    """Return name, version and extensions of the server."""
    return server_metadata(repository_control=_service(request).settings.repository_control)


@router.get("/v2/health/live")
async def live() -> dict[str, bool]:
    """Answer 200 as long as the process lives."""
    return {"live": True}


@router.get("/v2/health/ready", responses=_NOT_READY)
async def ready(request: Request) -> dict[str, bool]:
    """Answer 200 exactly when requests are taken, 503 while starting or draining."""
    _service(request).ready()
    return {"ready": True}


@router.get("/v2/models/{model}/versions/{version}/ready", responses=_NO_MODEL)
@router.get("/v2/models/{model}/ready", responses=_NO_MODEL)
async def model_ready(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Answer 200 exactly when the model takes requests."""
    return {"name": _model(request, model, version).name, "ready": True}


@router.get("/v2/models/{model}/versions/{version}", responses=_NO_MODEL)
@router.get("/v2/models/{model}", responses=_NO_MODEL)
async def model_described(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Return versions, inputs and outputs of a model."""
    predictor = _model(request, model, version)
    index = _service(request).models.index()
    versions = [one.version for one in index if one.name == predictor.name and one.state == "READY"]
    return model_metadata(predictor.name, versions, predictor.manifest)


@router.post("/v2/models/{model}/versions/{version}/infer", responses=RESPONSES, openapi_extra=INFER)
@router.post("/v2/models/{model}/infer", responses=RESPONSES, openapi_extra=INFER)
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Predict rows, each normalised as the parameters say, in JSON or binary tensors."""
    service = _service(request)
    deadline = Deadline(service.settings.request_timeout_s)
    note(request.scope, model=model)
    with service.accept(model, version) as predictor:
        parsed, job = await _prepared(request, service, predictor, deadline)
        note(request.scope, mode=job.statistics.mode, rows=len(job.rows), groups=len(job.groups.sizes))
        outcome = await service.execute(predictor, job, deadline, caller_of(request))
        note_run(request.scope, outcome.queue_s, outcome.run_s)

        def write() -> Encoded:
            answer = predictor.answer(job, outcome.logits, Timing(queue=0.0, run=0.0, total=0.0))
            return encode_response(
                parsed,
                outcome.logits,
                predictor.manifest.classes,
                model=predictor.name,
                version=predictor.version,
                statistics={**answer["statistics"], "warnings": answer["warnings"]},
            )

        small = outcome.logits.size <= ENCODED_AT_ONCE
        encoded = write() if small else await service.scheduler.work(write)
    if encoded.header_length is None:
        return Response(encoded.body, media_type="application/json")
    headers = {HEADER_LENGTH: str(encoded.header_length)}
    return Response(encoded.body, media_type="application/octet-stream", headers=headers)


async def _prepared(
    request: Request, service: Service, predictor: Predictor, deadline: Deadline
) -> tuple[InferRequest, Job]:
    """Read and check an infer request; its body is gone on return."""
    check_length(request, service.settings.max_body_bytes)
    body = await read_body(request, service.settings.max_body_bytes, deadline, service.scheduler.deadlines)
    length = request.headers.get(HEADER_LENGTH)

    def prepare() -> tuple[InferRequest, Job]:
        max_rows, name, version = service.limits.max_rows, predictor.name, predictor.version
        parsed = parse_infer(body, length, predictor.manifest, max_rows, name, version)
        return parsed, predictor.prepare(parsed.rows, parsed.settings)

    inline = len(body) <= INLINE_BYTES[JSON if length is None else NPY]
    return prepare() if inline else await service.scheduler.work(prepare, deadline)


@router.get("/v2/repository/index")
@router.post("/v2/repository/index", responses=RESPONSES)
async def index(request: Request) -> list[dict[str, str]]:
    """Return every version of every model with its state; {"ready": true} leaves out those that do not serve."""
    options = await _options(request, ("ready",))
    only_ready = options.get("ready", False)
    if not isinstance(only_ready, bool):
        raise ConfigurationError(f"expected ready as true or false; got {shorten(only_ready)}")
    found = _service(request).models.index()
    return [
        {"name": one.name, "version": one.version, "state": one.state, "reason": one.reason}
        for one in found
        if one.state == "READY" or not only_ready
    ]


@control.post("/v2/repository/models/{model}/load", responses=RESPONSES)
async def load(request: Request, model: str) -> dict[str, Any]:
    """Open every version of a model anew; where one fails, what served before serves on."""
    service = _service(request)
    await _parameters(request, ())
    try:
        await asyncio.to_thread(service.models.load, model)
    except ModelFileError as error:
        raise ConfigurationError(f"model {shorten(model)} was not loaded: {error}") from None
    return {}


@control.post("/v2/repository/models/{model}/unload", responses=RESPONSES)
async def unload(request: Request, model: str) -> dict[str, Any]:
    """Take a model out of service; requests that it accepted are answered."""
    service = _service(request)
    await _parameters(request, ("unload_dependents",))
    await asyncio.to_thread(service.models.unload, model)
    return {}


def _service(request: Request) -> Service:
    return cast("Service", request.app.state.service)


def _model(request: Request, model: str, version: str | None) -> Predictor:
    """Return a version that takes requests, without taking one of their places."""
    service = _service(request)
    service.ready()
    return service.models.get(model, version)


async def _parameters(request: Request, known: tuple[str, ...]) -> None:
    """Check the body of a load or unload: nothing, or an object whose parameters are among the known ones."""
    parameters = (await _options(request, ("parameters",))).get("parameters", {})
    if not isinstance(parameters, dict):
        raise ConfigurationError(f"expected parameters as an object; got {shorten(parameters)}")
    for name in parameters:
        if name not in known:
            hint = f"it takes: {', '.join(known)}" if known else "a model is loaded as its file says"
            raise ConfigurationError(f"unknown parameter {shorten(name)}; {hint}")


async def _options(request: Request, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON object that a request of the repository extension holds; an empty body is an empty object."""
    service = _service(request)
    deadline = Deadline(service.settings.request_timeout_s)
    body = await read_body(request, MAX_CONTROL_BYTES, deadline, service.scheduler.deadlines)
    try:
        options = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise MalformedRequestError(f"expected a JSON object; {str(error)[:150]}") from None
    if not isinstance(options, dict):
        raise InputError(f"expected an object; got {shorten(options)}")
    for name in options:
        if name not in known:
            raise ConfigurationError(f"unknown field {shorten(name)}; choose from: {', '.join(known)}")
    return options
