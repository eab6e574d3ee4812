"""An OpenTelemetry span for each request, where a tracer provider is configured.

Attributes follow the semantic conventions of HTTP servers; what is augserve's own starts with `augserve.`. Import
this module only where opentelemetry-api is installed; `augserve.service.watch.observe.find_tracing` does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, TracerProvider
from starlette.types import Scope
from typing_extensions import override

from augserve import __version__

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
LEFT = 499
OWN = ("model", "mode", "rows", "groups")


class Tracing:
    """Where the spans of requests begin.

    Args:
        provider: of tracers; None asks OpenTelemetry for the global one at each request, so that it may be
            configured after the application was built.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._given = provider
        self._provider: TracerProvider | None = None
        self._tracer: Tracer = trace.NoOpTracer()

    def begin(self, scope: Scope) -> Trace | None:
        """Begin the span of a request, a child of the one that its headers name; None without a provider."""
        provider = self._given or trace.get_tracer_provider()
        if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
            return None
        if provider is not self._provider:
            self._provider, self._tracer = provider, provider.get_tracer("augserve", __version__)
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        # From an empty context: a task may have been started in that of another request of its connection.
        parent = propagate.extract(headers, Context(), _HEADERS)
        return Trace(self._tracer, scope, headers, parent)


class Trace:
    """The span of one request, current until `finish`."""

    def __init__(self, tracer: Tracer, scope: Scope, headers: Mapping[str, list[str]], parent: Context) -> None:
        self._tracer = tracer
        self._method = scope["method"] if scope["method"] in METHODS else "HTTP"
        attributes = _request_attributes(scope, headers)
        self.span: Span = tracer.start_span(self._method, parent, SpanKind.SERVER, attributes)
        self._context = trace.set_span_in_context(self.span, parent)
        self._token = contexts.attach(self._context)

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        return trace.format_trace_id(self.span.get_span_context().trace_id)

    def ran(self, queue_s: float, run_s: float) -> None:
        """Add the spans of a run that ended just now, and of the wait before it."""
        ended = time.time_ns()
        began = ended - int(1e9 * run_s)
        queued = began - int(1e9 * queue_s)
        for name, start, end in (("augserve.queue", queued, began), ("augserve.run", began, ended)):
            self._tracer.start_span(name, self._context, start_time=start).end(end)

    def leave(self) -> None:
        """Make the span no longer current; in the task that began it."""
        contexts.detach(self._token)

    def finish(
        self, scope: Scope, status: int, access: Mapping[str, object], error: BaseException | None = None
    ) -> None:
        """End the span.

        Args:
            scope: of the request, with the route that was found for it.
            status: of the answer; 499 where the caller left.
            access: what the routes noted of the request.
            error: what the application raised.
        """
        span = self.span
        if span.is_recording():
            route = getattr(scope.get("route"), "path_format", None)
            if isinstance(route, str):
                span.update_name(f"{self._method} {route}")
                span.set_attribute("http.route", route)
            for key in OWN:
                value = access.get(key)
                if isinstance(value, (str, int)):
                    span.set_attribute(f"augserve.{key}", value)
            if status == LEFT:
                span.set_attribute("error.type", "client_disconnected")
            else:
                span.set_attribute("http.response.status_code", status)
            if status >= 500:
                why = type(error).__qualname__ if error is not None else str(access.get("code", status))
                span.set_attribute("error.type", why)
                span.set_status(StatusCode.ERROR)
        span.end()


class _Headers(Getter[Mapping[str, list[str]]]):
    """How a propagator reads the headers of a request."""

    @override
    def get(self, carrier: Mapping[str, list[str]], key: str) -> list[str] | None:
        return carrier.get(key.lower())

    @override
    def keys(self, carrier: Mapping[str, list[str]]) -> list[str]:
        return list(carrier)


_HEADERS = _Headers()


def _request_attributes(scope: Scope, headers: Mapping[str, list[str]]) -> dict[str, str | int]:
    method = scope["method"]
    attributes: dict[str, str | int] = {
        "http.request.method": method if method in METHODS else "_OTHER",
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
        "augserve.request_id": scope["state"]["request_id"],
    }
    if method not in METHODS:
        attributes["http.request.method_original"] = method
    if server := scope.get("server"):
        attributes["server.address"] = server[0]
        if server[1] is not None:
            attributes["server.port"] = server[1]
    if client := scope.get("client"):
        attributes["client.address"] = client[0]
    if "user-agent" in headers:
        attributes["user_agent.original"] = headers["user-agent"][0]
    return attributes
