"""What the solver needs of the data: sums of functions of them, their extremes, and their middle values.

`Values` are held in memory as a tensor and a `Reduction`; `augserve.norms.calibrate` adds values that stream from
a data set. For phi = 1 the middle values are found by sorting where a set is one row in memory, else exactly by
bisecting the number line of the floating point format, one count a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from augserve.norms.reduction import Local, Reduction, Segments

Terms = Callable[..., Iterable[Tensor]]
ROWS = Local((1,))


@dataclass(frozen=True)
class Values:
    """Sets of values: rows (R, m) with statistics (R, 1), or any other tensor with its reduction.

    Args:
        x: float32 or float64.
        reduction: how x makes sets.
    """

    x: Tensor
    reduction: Reduction = ROWS

    def sums(self, terms: Terms, *statistics: Tensor) -> list[Tensor]:
        """Return the sum over each set of every tensor that terms(x, *statistics) gives, in one pass.

        `terms` may be a generator that reuses a tensor's memory once it has been summed.
        """
        return self.reduction.sums(terms(self.x, *map(self.reduction.each, statistics)))

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value of each set; (inf, -inf) for an empty one."""
        return self.reduction.amin(self.x), self.reduction.amax(self.x)

    def count(self) -> int | Tensor:
        """Return the number of values in each set, at least 1."""
        return self.reduction.count(self.x)

    def map(self, function: Callable[..., Tensor], *statistics: Tensor) -> Values:
        """Return the values function(x, *statistics)."""
        return type(self)(function(self.x, *map(self.reduction.each, statistics)), self.reduction)

    def select(self, rows: Tensor) -> Values | None:
        """Return the sets with these indices, or None where that saves nothing."""
        return None if isinstance(self.reduction, Segments) else type(self)(self.x[rows], self.reduction)

    def can_wait(self) -> bool:
        """Return whether looking at a result costs nothing, or is allowed although it waits for the device."""
        return self.x.device.type == "cpu" or not isinstance(self.reduction, Segments)

    def median(self) -> Tensor:
        """Return the midpoint of the two middle values of each set."""
        if self.reduction == ROWS:
            ordered, m = self.x.sort(dim=1).values, self.x.shape[1]
            return ordered[:, (m - 1) // 2, None] / 2 + ordered[:, m // 2, None] / 2
        count = torch.as_tensor(self.count(), device=self.x.device)
        lower, upper = (self._order_statistic(rank) for rank in ((count - 1) // 2, count // 2))
        return lower / 2 + upper / 2

    def _order_statistic(self, rank: Tensor) -> Tensor:
        """Return the value that `rank` others of its set are not above, 0 for the smallest."""
        low, high = (_to_key(end) for end in self.extremes())
        for _ in range(torch.finfo(self.x.dtype).bits):
            middle = (low & high) + ((low ^ high) >> 1)  # the mean, rounded down, without overflow
            (at_most,) = self.sums(lambda x, key: [(_to_key(x) <= key).double()], middle)
            enough = at_most > rank
            low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
            low = torch.minimum(low, high)
        return _from_key(high, self.x.dtype)


def _to_key(x: Tensor) -> Tensor:
    """Return integers in the order of the floating point numbers x."""
    bits, top = (torch.int32, 2**31 - 1) if x.dtype == torch.float32 else (torch.int64, 2**63 - 1)
    key = x.view(bits)
    return torch.where(key < 0, key ^ top, key)


def _from_key(key: Tensor, dtype: torch.dtype) -> Tensor:
    top = 2**31 - 1 if dtype == torch.float32 else 2**63 - 1
    return torch.where(key < 0, key ^ top, key).view(dtype)
