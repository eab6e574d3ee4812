"""The Open Inference Protocol v2 beside inference: server, health, models and their repository."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request

from augserve.errors import ConfigurationError, InputError, MalformedRequestError, ModelFileError
from augserve.service.body.parse import read_body
from augserve.service.http.answering import service_of
from augserve.service.http.openapi import NO_MODEL, NOT_READY, RESPONSES
from augserve.service.model.predictor import Predictor
from augserve.service.queue.deadlines import Deadline
from augserve.service.schemas import shorten
from augserve.service.v2.metadata import model_metadata, server_metadata
from augserve.service.v2.openapi import TAG

MAX_CONTROL_BYTES = 2**16
router = APIRouter(tags=[TAG])
control = APIRouter(tags=[TAG])  # only where the operator allows it


@router.get("/v2")
async def server(request: Request) -> dict[str, Any]:
    """Return name, version and extensions of the server."""
    return server_metadata(repository_control=service_of(request).settings.repository_control)


@router.get("/v2/health/live")
async def live() -> dict[str, bool]:
    """Answer 200 as long as the process lives."""
    return {"live": True}


@router.get("/v2/health/ready", responses=NOT_READY)
async def ready(request: Request) -> dict[str, bool]:
    """Answer 200 exactly when requests are taken, 503 while starting or draining."""
    service_of(request).ready()
    return {"ready": True}


@router.get("/v2/models/{model}/versions/{version}/ready", responses=NO_MODEL)
@router.get("/v2/models/{model}/ready", responses=NO_MODEL)
async def model_ready(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Answer 200 exactly when the model takes requests."""
    return {"name": _model(request, model, version).name, "ready": True}


@router.get("/v2/models/{model}/versions/{version}", responses=NO_MODEL)
@router.get("/v2/models/{model}", responses=NO_MODEL)
async def model_described(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Return versions, inputs and outputs of a model."""
    predictor = _model(request, model, version)
    index = service_of(request).models.index()
    versions = [one.version for one in index if one.name == predictor.name and one.state == "READY"]
    return model_metadata(predictor.name, versions, predictor.manifest)


@router.get("/v2/repository/index")
@router.post("/v2/repository/index", responses=RESPONSES)
async def index(request: Request) -> list[dict[str, str]]:
    """Return every version of every model with its state; {"ready": true} leaves out those that do not serve."""
    options = await _options(request, ("ready",))
    only_ready = options.get("ready", False)
    if not isinstance(only_ready, bool):
        raise ConfigurationError(f"expected ready as true or false; got {shorten(only_ready)}")
    found = service_of(request).models.index()
    return [
        {"name": one.name, "version": one.version, "state": one.state, "reason": one.reason}
        for one in found
        if one.state == "READY" or not only_ready
    ]


@control.post("/v2/repository/models/{model}/load", responses=RESPONSES)
async def load(request: Request, model: str) -> dict[str, Any]:
    """Open every version of a model anew; where one fails, what served before serves on."""
    service = service_of(request)
    await _parameters(request, ())
    try:
        await asyncio.to_thread(service.models.load, model)
    except ModelFileError as error:
        raise ConfigurationError(f"model {shorten(model)} was not loaded: {error}") from None
    return {}


@control.post("/v2/repository/models/{model}/unload", responses=RESPONSES)
async def unload(request: Request, model: str) -> dict[str, Any]:
    """Take a model out of service; requests that it accepted are answered."""
    service = service_of(request)
    await _parameters(request, ("unload_dependents",))
    await asyncio.to_thread(service.models.unload, model)
    return {}


def _model(request: Request, model: str, version: str | None) -> Predictor:
    """Return a version that takes requests, without taking one of their places."""
    service = service_of(request)
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
    service = service_of(request)
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
