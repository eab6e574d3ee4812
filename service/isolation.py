"""Statistics groups of one request: the only place where group ids and tracked weights are made.

A row is normalised with the rows of its own group and with no others, so an answer is a function of its
request alone. The arrays made here are inputs of the graph.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from augserve.errors import StatisticsError
from augserve.statistics import Remainder, Statistics, split_rows


class Groups(NamedTuple):
    """The rows of one request cut into G groups; the first K rows are kept, the others dropped.

    ids: int64 (K,), 0..G-1. tracked_weight: float32 (K,), lambda of each row's group. sizes and weights: one
    entry a group. dropped: indices of the rows without a group. warnings: what the caller should know.
    """

    ids: npt.NDArray[np.int64]
    tracked_weight: npt.NDArray[np.float32]
    sizes: list[int]
    weights: list[float]
    dropped: list[int]
    warnings: list[str]


def group_rows(
    n: int,
    statistics: Statistics,
    batch_size: int | None = None,
    remainder: Remainder = "own",
    min_rows: int = 1,
) -> Groups:
    """Cut n rows into statistics groups and weigh each group.

    Args:
        n: rows of the request.
        statistics: the mode of the request.
        batch_size: rows in a group; None puts all into one.
        remainder: what becomes of the rows left over.
        min_rows: the fewest rows that have statistics of their own in this model (1 or 2).

    Returns:
        The groups.

    Raises:
        StatisticsError: a group whose statistics are not defined, rows left over with "error", or none kept.

    Example:
        >>> group_rows(5, Statistics("batch"), 2).sizes
        [2, 2, 1]
    """
    ids, sizes = split_rows(n, batch_size, remainder)
    weights = [statistics.weight(size) for size in sizes]
    alone = [g for g, size in enumerate(sizes) if size == 1 and weights[g] < 1]
    warnings = []
    if alone and min_rows > 1:
        raise StatisticsError(
            f"expected at least {min_rows} rows in each statistics group; group {alone[0]} has 1, and this "
            "model has a layer where one row has no statistics of its own; "
            "use tracking, a larger batch_size, or remainder merge or drop"
        )
    if alone:
        warnings.append(
            f"{len(alone)} of {len(sizes)} statistics groups have one row (the first is group {alone[0]}): "
            "its statistics come from the positions of that row alone"
        )
    per_row = np.repeat(np.asarray(weights, np.float32), sizes)
    return Groups(ids, per_row, sizes, weights, list(range(len(ids), n)), warnings)
