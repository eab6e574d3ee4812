"""A small application under the middlewares of the service, and requests to it without a network."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Message

from augserve.errors import QueueFullError
from augserve.service.http import errors as http_errors
from augserve.service.http.keys import ApiKeys, Guard
from augserve.service.http.routes import metrics as metrics_route
from augserve.service.watch.logs import access_log
from augserve.service.watch.metrics import Metrics
from augserve.service.watch.observe import Observe, note, note_run
from augserve.service.watch.tracing import Tracing

QUEUE_S, RUN_S = 0.002, 0.03


class App(FastAPI):
    """Wrapped as the service wraps its own: outside of the handler of unexpected errors."""

    wrap: Callable[[ASGIApp], ASGIApp]

    def build_middleware_stack(self) -> ASGIApp:
        return self.wrap(super().build_middleware_stack())


def make_app(
    metrics: Metrics | None = None,
    *,
    keys: ApiKeys | None = None,
    metrics_open: bool = False,
    tracing: Tracing | None = None,
) -> App:
    counted = metrics or Metrics()

    def wrap(app: ASGIApp) -> ASGIApp:
        inner = app if keys is None else Guard(app, keys, metrics_open=metrics_open)
        return Observe(inner, counted, tracing)

    app = App(telemetry={"tracing": False}, redirect_slashes=False)
    app.wrap = wrap
    app.state.service = SimpleNamespace(metrics=counted)
    app.include_router(metrics_route.router)
    http_errors.install(app)

    @app.get("/healthz")
    @app.get("/readyz")
    @app.get("/v2/health/live")
    @app.get("/v2/health/ready")
    async def alive() -> dict[str, str]:
        return {}

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        body = await request.body()
        note(request.scope, model=request.headers.get("model", "tiny"), mode="batch", rows=8, groups=2)
        note_run(request.scope, QUEUE_S, RUN_S)
        return JSONResponse({"bytes": len(body), "id": request.state.request_id})

    @app.get("/models/{name}")
    async def model(name: str, request: Request) -> dict[str, str]:
        note(request.scope, model=name)
        return {}

    @app.get("/full")
    async def full(request: Request) -> None:
        note(request.scope, code="queue_full")
        raise QueueFullError("full")

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError("a secret")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> Any:
            yield b"one"
            await asyncio.sleep(0)
            yield b"two"

        return StreamingResponse(parts())

    return app


def ask(app: ASGIApp, method: str, path: str, **options: Any) -> httpx.Response:
    """Send one request; what the application raises after its answer is left aside, as a server does."""
    return ask_all(app, [(method, path, options)])[0]


def ask_all(app: ASGIApp, requests: Iterable[tuple[str, str, dict[str, Any]]]) -> list[httpx.Response]:
    async def go() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("10.1.2.3", 4567))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return [await client.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(go())


async def drive(
    app: ASGIApp,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
    **scope: Any,
) -> None:
    """Call an application as a server does, with a receive and a send of the test's own."""
    whole = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "headers": [],
        "root_path": "",
        "scheme": "http",
        "client": ("10.1.2.3", 4567),
        "server": ("service", 80),
    }
    await app({**whole, **scope}, receive, send)


def lines_of(act: Callable[[], object]) -> list[dict[str, Any]]:
    """The lines of the access log that something writes."""
    stream = io.StringIO()
    with access_log(True, stream):
        act()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)
