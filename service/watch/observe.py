"""What an operator sees of each request: its id, a line in the access log, counters, a span.

`Observe` stands around everything else, so that it sees every answer, those to unexpected errors too. Routes tell
it of their request with `note` and `note_run`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from augserve.service.watch.metrics import Metrics

if TYPE_CHECKING:
    from augserve.service.watch.tracing import Trace, Tracing

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("augserve.access")

CALLER_LEFT = 499  # no caller sees it: there is none any more
NOTED = ("model", "mode", "rows", "groups", "queue_ms", "run_ms", "code")
LONGEST = 256  # characters of a text in the log that the caller chose

_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


class Observe:
    """An ASGI application that watches another one answer.

    A request's X-Request-ID is taken over when it is 1 to 128 visible ASCII characters, else one is made; it is in
    scope["state"]["request_id"] and in every answer. A caller that leaves before the end of the answer counts as
    status 499, where the application listens for it (`receive`) or the server tells it.

    Args:
        app: what is watched.
        metrics: counts each request.
        tracing: begins a span for each request; None for none.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, and record it once it is answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        trace = self._begin(scope) if self._tracing is not None else None
        error: BaseException | None = None
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as raised:
            error = raised
            raise
        finally:
            try:
                self._finish(scope, exchange, trace, error)
            except Exception:  # who watches never breaks what he watches
                logger.exception("could not record %s", exchange.request_id)

    def _begin(self, scope: Scope) -> Trace | None:
        try:
            trace = self._tracing.begin(scope) if self._tracing is not None else None
        except Exception:
            logger.exception("could not begin a span")
            return None
        if trace is not None:
            scope["state"].update(trace=trace, trace_id=trace.trace_id)
        return trace

    def _finish(self, scope: Scope, exchange: _Exchange, trace: Trace | None, error: BaseException | None) -> None:
        if trace is not None:
            trace.leave()
        status, access = exchange.outcome(error), exchange.access
        seconds = (exchange.ended or time.perf_counter()) - exchange.began
        self._metrics.request(access.get("model"), access.get("mode"), status, seconds, access.get("rows", 0))
        if access_logger.isEnabledFor(logging.INFO):
            access_logger.info(_line(scope, exchange, status, seconds))
        if trace is not None:
            trace.finish(scope, status, access, error)


class _Exchange:
    """A request and its answer as they pass by."""

    __slots__ = (
        "_receive",
        "_send",
        "access",
        "began",
        "bytes_in",
        "bytes_out",
        "ended",
        "left",
        "request_id",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.began = time.perf_counter()
        self.ended: float | None = None
        self.bytes_in = self.bytes_out = 0
        self.left = False
        self.status = 500
        self.request_id = _request_id(scope["headers"])
        self.access: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=self.request_id, access=self.access)

    async def receive(self) -> Message:
        """Hand on what the caller sends."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.bytes_in += len(message.get("body", b""))
        elif message["type"] == "http.disconnect" and self.ended is None:
            self.left = True
        return message

    async def send(self, message: Message) -> None:
        """Hand on what the application answers, with the request's id."""
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            given = (pair for pair in message.get("headers", ()) if pair[0].lower() != b"x-request-id")
            message = {**message, "headers": [*given, (b"x-request-id", self.request_id.encode())]}
        try:
            await self._send(message)
        except OSError:  # how servers of ASGI 2.4 say that the caller left
            self.left = self.left or self.ended is None
            raise
        if kind == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.ended = time.perf_counter()
        elif kind == "http.response.pathsend":
            self.ended = time.perf_counter()

    def outcome(self, error: BaseException | None) -> int:
        """Return the status to record, once the application is done."""
        if self.left:
            return CALLER_LEFT
        if self.ended is not None:
            return self.status
        return CALLER_LEFT if isinstance(error, asyncio.CancelledError) else 500


def note(scope: Scope, **fields: str | float | None) -> None:
    """Note of a request what the access log, the counters and its span tell: model, mode, rows, groups, code."""
    access = scope.get("state", {}).get("access")
    if access is not None:
        for key, value in fields.items():  # a name that is not served is whatever its caller wrote
            access[key] = value[:LONGEST] if isinstance(value, str) else value


def note_run(scope: Scope, queue_s: float, run_s: float) -> None:
    """Note that a request's run ended just now.

    Args:
        scope: of the request.
        queue_s: seconds that it waited for the run.
        run_s: seconds of the run.
    """
    note(scope, queue_ms=1e3 * queue_s, run_ms=1e3 * run_s)
    trace = scope.get("state", {}).get("trace")
    if trace is not None:
        trace.ran(queue_s, run_s)


def find_tracing() -> Tracing | None:
    """Return what begins spans, where opentelemetry-api is installed."""
    try:
        from augserve.service.watch.tracing import Tracing
    except ImportError:
        return None
    return Tracing()


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return f"{random.getrandbits(128):032x}"  # tells requests apart, protects nothing


def _line(scope: Scope, exchange: _Exchange, status: int, seconds: float) -> str:
    """Return the line of the access log, a JSON object; what is not known is left out."""
    state, client, access = scope["state"], scope.get("client"), exchange.access
    fields = {
        "time": datetime.fromtimestamp(time.time() - (time.perf_counter() - exchange.began), timezone.utc),
        "request_id": exchange.request_id,
        "trace_id": state.get("trace_id"),
        "method": scope["method"][:LONGEST],
        "path": scope["path"][:LONGEST],
        "status": status,
        "duration_ms": round(1e3 * seconds, 3),
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "client": client[0] if client else None,
        "caller": state.get("caller"),
    }
    for key in NOTED:
        value = access.get(key)
        fields[key] = round(value, 3) if isinstance(value, float) else value
    known = {key: value for key, value in fields.items() if value is not None}
    try:
        return orjson.dumps(known, option=orjson.OPT_UTC_Z).decode()
    except TypeError:  # a path that is no Unicode
        safe = {key: ascii(value) if isinstance(value, str) else value for key, value in known.items()}
        return orjson.dumps(safe, option=orjson.OPT_UTC_Z, default=str).decode()
