"""Freed memory goes back to the system after a model was replaced.

glibc keeps what is freed in the arena of the thread that had it. Versions that come and go under load leave it in
pieces all over the arenas, and a server that reloads all day would hold more and more that it does not use.
"""

from __future__ import annotations

import ctypes
import sys


def give_back_freed_memory() -> bool:
    """Return whole free pages of every arena to the system; False where the C library does not do that.

    Example:
        >>> give_back_freed_memory()  # doctest: +SKIP
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim is not None and trim(0) == 1)
