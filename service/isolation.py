"""Statistics groups of requests and of runs: the only place where group ids and tracked weights are made.

A row is normalised with the rows of its own group and with no others, so an answer is a function of its
request alone, whichever requests share its run. The arrays made here are inputs of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from augserve.errors import PayloadTooLargeError, StatisticsError
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


@lru_cache(maxsize=64)
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
    for array in (ids, per_row):
        array.flags.writeable = False  # requests of the same size and settings share them
    return Groups(ids, per_row, sizes, weights, list(range(len(ids), n)), warnings)


class Piece(NamedTuple):
    """Rows that run together: whole statistics groups of one request, or some of its tracked rows.

    rows: float32 (K, C, H, W). ids: int64 (K,), 0..G-1. tracked_weight: float32 (K,). groups: rows of each group.
    """

    rows: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]
    tracked_weight: npt.NDArray[np.float32]
    groups: list[int]


def cut(
    rows: npt.NDArray[np.float32], groups: Groups, limit: int, *, fill: int | None = None, apart: bool = False
) -> list[Piece]:
    """Cut a request into what need not run together.

    Args:
        rows: kept rows, float32 (K, C, H, W).
        groups: their groups, in order.
        limit: the most rows of a run.
        fill: rows that fill a run, at most `limit`; None means `limit`.
        apart: whether each group must have a run of its own, in a file that takes no groups.

    Returns:
        Pieces of at most `fill` rows, or of one group of at most `limit`. Groups stay whole, except where all their
        rows are tracked: such rows have nothing to do with each other.

    Raises:
        PayloadTooLargeError: a group with statistics of its own that is larger than a run may be.

    Example:
        >>> groups = group_rows(5, Statistics("batch"), 2)
        >>> [piece.groups for piece in cut(rows, groups, 4)]
        [[2, 2], [1]]
    """
    fill = min(fill or limit, limit)
    if len(rows) <= fill and not (apart and len(groups.sizes) > 1):
        return [Piece(rows, groups.ids, groups.tracked_weight, groups.sizes)]
    spans: list[tuple[int, int, list[int]]] = []  # first row, row behind the last, groups
    for size, weight, end in zip(groups.sizes, groups.weights, accumulate(groups.sizes), strict=True):
        start = end - size
        if size > limit and weight < 1:
            raise PayloadTooLargeError(
                f"expected statistics groups of at most {limit} rows (max_batch_size); got one of {size}; "
                "choose a smaller batch_size, or tracking"
            )
        step = fill if weight >= 1 else size
        for first in range(start, end, step):
            last = min(first + step, end)
            if spans and not apart and last - spans[-1][0] <= fill:
                spans[-1] = (spans[-1][0], last, [*spans[-1][2], last - first])
            else:
                spans.append((first, last, [last - first]))
    return [
        Piece(
            rows[first:last],
            groups.ids[first:last] - groups.ids[first],
            groups.tracked_weight[first:last],
            sizes,
        )
        for first, last, sizes in spans
    ]


def merge(
    pieces: Sequence[Piece],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Put pieces, of any requests, into one run: each keeps its groups, under ids that no other has.

    Returns:
        rows float32 (N, C, H, W), ids int64 (N,), tracked_weight float32 (N,): inputs of the graph.

    Example:
        >>> rows, ids, weights = merge([piece, piece])
    """
    if len(pieces) == 1:
        return pieces[0].rows, pieces[0].ids, pieces[0].tracked_weight
    firsts = accumulate((len(piece.groups) for piece in pieces[:-1]), initial=0)
    return (
        np.concatenate([piece.rows for piece in pieces]),
        np.concatenate([piece.ids + first for piece, first in zip(pieces, firsts, strict=True)]),
        np.concatenate([piece.tracked_weight for piece in pieces]),
    )
