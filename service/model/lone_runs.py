"""Which runs that have the machine to themselves leave the second core out: those that it hardly shortens.

A run over two cores goes on when both are there. Where the system brings one late, by milliseconds in some of a
hundred runs, a short run is ten times as long; on one core it waits for nobody. What the second core saves is
measured when a model is loaded.
"""

from __future__ import annotations

import itertools

from augserve.manifest import Manifest
from augserve.service.model.graph import Form
from augserve.service.model.run_times import shortest_runs

WORTH_S = 2e-4  # what a second core must save of a run to be waited for
LONG_S = 0.01  # of runs as long as this a second core saves more
SIZES = (1, 2, 4, 8)  # rows that are measured, until a number loses too much


def rows_on_one_core(form: Form, manifest: Manifest) -> int:
    """Return up to how many rows a run alone takes one core; 0: none.

    Args:
        form: a form with a session for runs beside others, that has run a row alone on all cores, as with few = 0.
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
    """Return the seconds by which a run of n rows is longer on one core."""
    both, one = shortest_runs(form, manifest, [(n, True), (n, False)])
    return one - both
