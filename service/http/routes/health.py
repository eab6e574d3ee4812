"""GET /healthz (the process answers) and GET /readyz (it takes requests): an adapter of the lifecycle."""

from __future__ import annotations

from typing import cast

from fastapi import APIRouter
from starlette.requests import Request

from augserve.service.http.openapi import NOT_READY
from augserve.service.lifecycle import Service

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
    service = cast("Service", request.app.state.service)
    service.ready()
    return {"status": "ready", "models": ", ".join(sorted({one.name for one in service.models.predictors()}))}
