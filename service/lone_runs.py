"""Which runs that have the machine to themselves leave the second core out: those that it hardly shortens.

A run over two cores goes on when both are there. Where the system brings one late, by milliseconds in some of a
hundred runs, a short run is ten times as long; on one core it waits for nobody. What the second core saves is
measured when a model is loaded.
"""

from __future__ import annotations

import itertools
import time

import numpy as np

from augserve.manifest import Manifest
from augserve.service.forms import Form

WORTH_S = 2e-4  # what a second core must save of a run to be waited for
LONG_S = 0.01  # of runs as long as this a second core saves more
SIZES = (1, 2, 4, 8)  # rows that are measured, until a number loses too much
ROUNDS, ENOUGH_S = 15, 0.05  # of measuring one of them


def rows_on_one_core(form: Form, manifest: Manifest) -> int:
    """Return up to how many rows a run alone takes one core; 0: none.

    Args:
        form: a form with a session for runs beside others, that has run a row alone.
        manifest: the shape of a row.

    Returns:
        0 or one of SIZES.

    Example:
        >>> rows_on_one_core(predictor.tracked, predictor.manifest)  # doctest: +SKIP
        1
    """
    if form.seconds_of(1) > LONG_S:
        return 0
    lose_little = itertools.takewhile(lambda n: _lost(form, manifest, n) <= WORTH_S, SIZES)
    return max(lose_little, default=0)


def _lost(form: Form, manifest: Manifest, n: int) -> float:
    """Return the seconds by which a run of n rows is longer on one core, by the shortest of each."""
    rows = np.random.default_rng(0).normal(size=(n, *manifest.shape)).astype(np.float32)
    times: dict[bool, list[float]] = {True: [], False: []}
    began = time.perf_counter()
    while len(times[True]) < ROUNDS and time.perf_counter() < began + ENOUGH_S:
        for alone, taken in times.items():
            start = time.perf_counter()
            form.run(rows, np.zeros(n, np.int64), np.zeros(n, np.float32), alone=alone)
            taken.append(time.perf_counter() - start)
    return min(times[False]) - min(times[True])
