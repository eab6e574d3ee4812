"""augserve: networks whose normalization statistics are explicit, from training to the HTTP answer.

Submodules are imported on first use, so that ``import augserve`` costs nothing::

    import augserve
    augserve.norms.AugNorm2d(16)          # imports torch here
    augserve.runtime.open_session(path)   # imports ONNX Runtime here
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = (
    "client",
    "data",
    "errors",
    "export",
    "manifest",
    "models",
    "native",
    "norms",
    "runtime",
    "service",
    "statistics",
    "training",
)

# ONNX Runtime's builds for Linux report to their maker from 1.29 on, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
