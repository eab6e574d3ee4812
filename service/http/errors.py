"""The one table from augserve's errors to HTTP: status, code, and when to try again.

Nothing else in the service knows a status. A body is always {"error": "...", "code": "..."}.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match

from augserve import errors
from augserve.service.watch.observe import note

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

logger = logging.getLogger(__name__)


class Refusal(NamedTuple):
    """How an error looks from outside."""

    status: int
    code: str
    retry_after_s: int | None = None


TABLE: dict[type[errors.AugserveError], Refusal] = {
    errors.MalformedRequestError: Refusal(400, "malformed_request"),
    errors.MissingApiKeyError: Refusal(401, "missing_api_key"),
    errors.InvalidApiKeyError: Refusal(403, "invalid_api_key"),
    errors.UnknownModelError: Refusal(404, "unknown_model"),
    errors.PayloadTooLargeError: Refusal(413, "payload_too_large"),
    errors.MediaTypeError: Refusal(415, "unsupported_media_type"),
    errors.ConfigurationError: Refusal(422, "invalid_setting"),
    errors.InputError: Refusal(422, "invalid_input"),
    errors.StatisticsError: Refusal(422, "impossible_statistics"),
    errors.QueueFullError: Refusal(429, "queue_full", retry_after_s=1),
    errors.NotReadyError: Refusal(503, "not_ready", retry_after_s=1),
    errors.DeadlineError: Refusal(504, "deadline_exceeded"),
}

INTERNAL = Refusal(500, "internal_error")


def refusal_of(error: errors.AugserveError) -> Refusal:
    """Return the row of the table for an error; one without a row is the server's own fault."""
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), INTERNAL)


def install(app: FastAPI) -> None:
    """Answer every error of `app` in the one form."""
    app.add_exception_handler(errors.AugserveError, _on_augserve_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected)


def _respond(
    request: Request, refusal: Refusal, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    note(request.scope, code=refusal.code)
    headers = dict(headers or {})
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    return JSONResponse({"error": message, "code": refusal.code}, refusal.status, headers)


async def _on_augserve_error(request: Request, error: Exception) -> JSONResponse:
    refusal = refusal_of(error) if isinstance(error, errors.AugserveError) else INTERNAL
    if refusal is INTERNAL:
        return await _on_unexpected(request, error)
    return _respond(request, refusal, str(error))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Answer what the router raises: a path that is not there, a method that a path does not take."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(getattr(error, "headers", None) or {})
    if status == 404:
        message = f"no path {request.url.path[:80]} here; /docs lists the paths"
        return _respond(request, Refusal(404, "not_found"), message, headers)
    if status == 405:
        allowed = ", ".join(_allowed(request)) or "another method"
        headers = {**{name: value for name, value in headers.items() if name.lower() != "allow"}, "Allow": allowed}
        message = f"expected {allowed} for {request.url.path[:80]}; got {request.method[:20]}"
        return _respond(request, Refusal(405, "method_not_allowed"), message, headers)
    return _respond(request, Refusal(status, "http_error"), str(getattr(error, "detail", error))[:200], headers)


def _allowed(request: Request) -> list[str]:
    """Return the methods that a path takes; the router names those of one of its routes alone."""

    def takes(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in METHODS if takes(method)]


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _respond(request, INTERNAL, "the server failed on this request; its log says why")
