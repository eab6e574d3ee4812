"""GET /models: what is served, an adapter of the repository."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from augserve.service.http.answering import service_of

router = APIRouter()


@router.get("/models")
async def models(request: Request) -> dict[str, list[dict[str, Any]]]:
    """Answer every version of every model: its state, classes, shape, statistics modes and preprocessing."""
    service = service_of(request)
    open_versions = {(one.name, one.version): one for one in service.models.predictors()}
    answer = []
    for status in service.models.index():
        entry: dict[str, Any] = {"name": status.name, "version": status.version, "state": status.state}
        if status.reason:
            entry["reason"] = status.reason
        predictor = open_versions.get((status.name, status.version))
        if predictor is not None:
            manifest = predictor.manifest
            entry |= {
                "architecture": manifest.architecture,
                "classes": manifest.classes,
                "shapes": manifest.shapes,
                "modes": list(manifest.modes),
                "default_mode": manifest.default_mode if manifest.mode == "adaptive" else manifest.mode,
                "precision": manifest.precision,
                "preprocessing": manifest.preprocessing and manifest.preprocessing.model_dump(),
            }
        answer.append(entry)
    return {"models": answer}
