"""Statistics modes and statistics groups: one vocabulary for layers, files and requests.

With n rows in a statistics group, every normalization statistic s (center and scale) is

    s = lambda * s_tracked + (1 - lambda) * s_group

tracked: lambda = 1. batch: lambda = 0. blend: lambda given as ``tracked_weight``, or as ``prior`` N,
lambda = N / (N + n) (Schneider et al. 2020, "Improving robustness against common corruptions by covariate
shift adaptation", eq. 2). A statistics group is the set of rows that are normalized together; the answer of a
row depends on the rows of its own group only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from augserve.errors import ConfigurationError, StatisticsError, unknown_choice

Mode = Literal["tracked", "batch", "blend"]
Remainder = Literal["own", "merge", "drop", "error"]

MODES: tuple[str, ...] = get_args(Mode)
REMAINDERS: tuple[str, ...] = get_args(Remainder)


@dataclass(frozen=True)
class Statistics:
    """Which statistics normalize a group of rows.

    Args:
        mode: "tracked" (running statistics), "batch" (the group's own) or "blend" (between the two).
        tracked_weight: for "blend": lambda in [0, 1], the weight of the running statistics.
        prior: for "blend", instead of tracked_weight: N >= 0, the number of rows that the running statistics
            count for; lambda = N / (N + n) for a group of n rows.

    Raises:
        ConfigurationError: an unknown mode, a weight out of range, or one that the mode does not take.

    Example:
        >>> Statistics("blend", prior=16).weight(rows=48)
        0.25
    """

    mode: Mode = "tracked"
    tracked_weight: float | None = None
    prior: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_choice("statistics mode", self.mode, MODES)
        given = [name for name in ("tracked_weight", "prior") if getattr(self, name) is not None]
        if self.mode != "blend" and given:
            raise ConfigurationError(
                f"mode {self.mode!r} takes no {given[0]}; use mode 'blend' or leave {given[0]} out"
            )
        if self.mode == "blend" and len(given) != 1:
            came = "both" if given else "neither"
            raise ConfigurationError(f"mode 'blend' takes one of tracked_weight and prior; got {came}")
        if self.tracked_weight is not None and not 0 <= self.tracked_weight <= 1:
            raise ConfigurationError(f"tracked_weight must lie in [0, 1]; got {self.tracked_weight}")
        if self.prior is not None and not (self.prior >= 0 and math.isfinite(self.prior)):
            raise ConfigurationError(f"prior must be a finite number of rows >= 0; got {self.prior}")

    @property
    def fixed_weight(self) -> float | None:
        """Lambda where it does not depend on the number of rows, else None."""
        if self.mode == "tracked":
            return 1.0
        if self.mode == "batch" or self.prior == 0:
            return 0.0
        return None if self.tracked_weight is None else float(self.tracked_weight)

    def weight(self, rows: int) -> float:
        """Return lambda, the weight of the running statistics, for a group of `rows` rows (rows >= 1)."""
        fixed = self.fixed_weight
        if fixed is not None or self.prior is None:
            return fixed or 0.0
        return float(self.prior) / (float(self.prior) + rows)


class RowGroups(NamedTuple):
    """Rows cut into statistics groups, in order.

    ids: int64 (K,), the group 0..G-1 of each kept row; rows K and later of the request are dropped.
    sizes: rows in each of the G groups.
    """

    ids: npt.NDArray[np.int64]
    sizes: list[int]


def split_rows(n: int, batch_size: int | None = None, remainder: Remainder = "own") -> RowGroups:
    """Cut n rows, taken in order, into statistics groups of `batch_size` rows.

    Args:
        n: number of rows, at least 1.
        batch_size: rows in a group; None puts all rows into one group.
        remainder: what becomes of the n mod batch_size last rows: "own" (a smaller group), "merge" (they join
            the last full group), "drop" (they get no group), "error".

    Returns:
        The group of each kept row and the size of each group.

    Raises:
        ConfigurationError: an unknown remainder, or a batch_size below 1.
        StatisticsError: no rows, rows left over with remainder "error", or every row dropped.

    Example:
        >>> split_rows(10, 4).sizes
        [4, 4, 2]
    """
    if remainder not in REMAINDERS:
        raise unknown_choice("remainder", remainder, REMAINDERS)
    if batch_size is not None and batch_size < 1:
        raise ConfigurationError(f"batch_size must be at least 1; got {batch_size}")
    if n < 1:
        raise StatisticsError(f"expected at least 1 row; got {n}")
    if batch_size is None:
        sizes = [n]
    else:
        full, left = divmod(n, batch_size)
        sizes = [batch_size] * full
        if left and remainder == "error":
            raise StatisticsError(
                f"{n} rows do not divide into groups of {batch_size}: {left} left over; "
                "send a multiple, or choose remainder own, merge or drop"
            )
        if left and (remainder == "own" or (remainder == "merge" and not full)):
            sizes.append(left)
        elif left and remainder == "merge":
            sizes[-1] += left
        if not sizes:
            raise StatisticsError(
                f"remainder 'drop' leaves none of the {n} rows with batch_size {batch_size}; send more rows"
            )
    return RowGroups(np.repeat(np.arange(len(sizes), dtype=np.int64), sizes), sizes)
