"""The ASGI application: routes, errors and documentation around one `Service`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp
from typing_extensions import override

from augserve import __version__
from augserve.service.http import errors as http_errors
from augserve.service.http.keys import Guard, read_api_keys
from augserve.service.http.openapi import describe
from augserve.service.http.routes import health, infer, metrics, models, predict, v2
from augserve.service.lifecycle import Service
from augserve.service.settings import Settings, read_settings
from augserve.service.watch.observe import Observe, find_tracing


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; its lifespan loads the model.

    Args:
        settings: the operator's choices; None reads AUGSERVE_* variables (AUGSERVE_MODEL is required).

    Returns:
        An ASGI application for any ASGI server. A model that takes more than a moment to load goes on loading while
        the server answers, with /readyz at 503 until it is there.

    Raises:
        ConfigurationError: settings are None and the environment's are incomplete or invalid.

    Example:
        >>> app = create_app(Settings(model="model.onnx"))
        >>> uvicorn.run(app)
    """
    return build_app(Service(settings or read_settings()))


def build_app(service: Service) -> FastAPI:
    """Build the application around a service, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = _App(
        title="augserve",
        version=__version__,
        description="Predictions whose normalization statistics each request chooses for itself.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False},  # Observe makes the span
    )
    app.state.service = service
    app.state.keys = read_api_keys(service.settings.api_keys_file)
    for routes in (models, health, metrics, v2):
        app.include_router(routes.router)
    # As they are, and first: an included router is another look-up on the way of each request.
    app.router.routes[:0] = [*predict.router.routes, *infer.router.routes]
    if service.settings.repository_control:
        app.include_router(v2.control)
    http_errors.install(app)
    return app


class _App(FastAPI):
    """FastAPI that is guarded and observed, and whose documentation shows a request that the model answers."""

    @override
    def build_middleware_stack(self) -> ASGIApp:
        """Put the watch around everything, the handler of unexpected errors too."""
        service: Service = self.state.service
        app: ASGIApp = super().build_middleware_stack()
        if self.state.keys is not None:
            app = Guard(app, self.state.keys, metrics_open=service.settings.metrics_open)
        return Observe(app, service.metrics, find_tracing())

    @override
    def openapi(self) -> dict[str, Any]:
        return describe(super().openapi(), self.state.service)
