"""GET /healthz (the process answers) and GET /readyz (it takes requests): an adapter of the lifecycle."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request

from augserve.service.http.answering import service_of
from augserve.service.http.openapi import NOT_READY

router = APIRouter()


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer 200 as long as the process lives."""
    return {"status": "alive"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=NOT_READY)
async def readyz(request: Request) -> dict[str, str]:
    """Answer 200 exactly when requests are taken, 503 while starting or draining."""
    service = service_of(request)
    service.ready()
    return {"status": "ready", "models": ", ".join(sorted({one.name for one in service.models.predictors()}))}
