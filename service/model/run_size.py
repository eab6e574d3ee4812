"""How many rows fill a run of two side by side: the fewest of which a row costs as little as of more.

Short runs keep the threads that run and the event loop, which reads and answers, evenly busy; but a network of
large weights reads them anew in every run. Which of the two counts, the network and the processor know: it is
measured when a model is loaded.
"""

from __future__ import annotations

from augserve.manifest import Manifest
from augserve.service.model.graph import Form
from augserve.service.model.run_times import shortest_runs

LEAST = 4  # below it, what a run costs beside the model shows
GAIN = 0.02  # of a row's time, for which twice as many rows are taken
LONG_S = 0.01  # beside runs as long as this the event loop does little: their size is left to what waits


def fitting_rows(form: Form, manifest: Manifest, limit: int) -> int:
    """Return the rows that fill a run of the form beside another.

    Args:
        form: a form that takes rows of several requests in a run, and that has run a row alone.
        manifest: the shape of a row.
        limit: the most rows of a run.

    Returns:
        LEAST times a power of two, at most `limit`; the limit where runs take long anyway.

    Example:
        >>> fitting_rows(predictor.tracked, predictor.manifest, 64)  # doctest: +SKIP
        4
    """
    if LEAST * form.seconds_of(1) > LONG_S:
        return limit
    rows = LEAST
    while 2 * rows <= limit and _gains(form, manifest, rows):
        rows *= 2
    return min(rows, limit)


def _gains(form: Form, manifest: Manifest, n: int) -> bool:
    """Whether a row costs less in runs of 2 n rows than in runs of n."""
    short, long = shortest_runs(form, manifest, [(n, False), (2 * n, False)])
    return long < 2 * (1 - GAIN) * short
