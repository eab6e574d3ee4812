"""How long runs of a form take: the shortest of several, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from augserve.manifest import Manifest
from augserve.service.model.graph import Form

ROUNDS, ENOUGH_S = 9, 0.1  # of the turns: no further round begins when so much time has passed


def shortest_runs(form: Form, manifest: Manifest, ways: Sequence[tuple[int, bool]]) -> list[float]:
    """Return the seconds of the shortest run of each way, on random rows of one group with its own statistics.

    Args:
        form: the form.
        manifest: the shape of a row.
        ways: the number of rows, and whether the run is alone (see `Form.run`).
    """
    most = max(size for size, _ in ways)
    rows = np.random.default_rng(0).normal(size=(most, *manifest.shape)).astype(np.float32)
    times: list[list[float]] = [[] for _ in ways]
    began = time.perf_counter()
    while len(times[0]) < ROUNDS and time.perf_counter() < began + ENOUGH_S:
        for (size, alone), taken in zip(ways, times, strict=True):
            start = time.perf_counter()
            form.run(rows[:size], np.zeros(size, np.int64), np.zeros(size, np.float32), alone=alone)
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]
