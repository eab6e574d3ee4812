"""Where the threads that run models stand: one on each core, and behind the event loop.

Left to itself, Linux wakes a thread where it slept last, behind another one, while the other core is idle.
Elsewhere nothing is placed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence

NICE = 5  # of threads that run models: what reads and writes requests goes first, so that the next run is there


def usable_cores() -> list[int]:
    """Return the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def placing(cores: Sequence[int]) -> Callable[[], None]:
    """Return what places the thread that calls it: each on the next of the cores.

    Example:
        >>> ThreadPoolExecutor(2, initializer=placing(usable_cores()))  # doctest: +SKIP
    """
    numbers = itertools.cycle(cores)

    def place() -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # a sandbox may forbid it
                os.sched_setaffinity(0, {next(numbers)})
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)

    return place
