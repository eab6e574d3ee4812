"""Triton where it is installed: the one place that imports it.

Triton exists for Linux only. It decides at import whether kernels are compiled or interpreted (TRITON_INTERPRET=1).
Kernel modules take `jit`, `tl` and `constant` from here and so import everywhere; without Triton they hold plain
functions that nothing calls. The entry points load them on the first call.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


triton: Any = _load("triton")
tl: Any = None if triton is None else _load("triton.language")

GENERAL = ("rows", "sets", "blocks", "splits", "share", "limit", "sampled", "max_steps", "back")


def jit(function: Callable[..., Any]) -> Any:
    """Return the function as a Triton kernel, or unchanged without Triton.

    The arguments named in `GENERAL` are never compiled in: for another number of rows the kernel is the same,
    to the bit, and is not compiled again.
    """
    if triton is None:
        return function
    names = [name for name in inspect.signature(function).parameters if name in GENERAL]
    return triton.jit(function, do_not_specialize=names)


def constant(value: float) -> Any:
    """Return a module constant that kernels may read."""
    return value if tl is None else tl.constexpr(value)
