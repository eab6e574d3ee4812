"""GET /metrics: an adapter of what the service counts."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from starlette.requests import Request
from starlette.responses import Response

from augserve.service.http.answering import service_of

router = APIRouter()


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"application/openmetrics-text": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """Answer what the service counts, in the text format of Prometheus or as OpenMetrics."""
    # Not a coroutine: writing the text takes milliseconds, and a thread keeps them off the event loop.
    counted = service_of(request).metrics
    body, content_type = counted.render(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})
