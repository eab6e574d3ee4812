"""The inference service: one model over HTTP, every request normalised as it says and by its own rows only.

Needs neither torch nor the exporter; names are imported on first use::

    from augserve.service import create_app   # an ASGI application
    from augserve.service import serve        # the application behind uvicorn
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from augserve.service.app import create_app
    from augserve.service.model.predictor import Predictor
    from augserve.service.schemas import PredictSettings
    from augserve.service.server import serve
    from augserve.service.settings import Settings, read_settings

__all__ = ["PredictSettings", "Predictor", "Settings", "create_app", "read_settings", "serve"]

_MODULES = {
    "PredictSettings": "schemas",
    "Predictor": "model.predictor",
    "Settings": "settings",
    "create_app": "app",
    "read_settings": "settings",
    "serve": "server",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
