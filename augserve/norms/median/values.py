"""What the solver needs of the data: sums of functions of them, their extremes, and their middle values.

`Stored` values are held in memory as a tensor and a `Reduction`; `augserve.norms.calibrate` adds values that
stream from a data set. For phi = 1 the middle values are found by sorting where a set is one row in memory, else
exactly by bisecting the number line of the floating point format, one count a pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from augserve.norms.reduction import Local, Reduction, Segments

Terms = Callable[..., Iterable[Tensor]]
ROWS = Local((1,))


class Values(ABC):
    """Sets of float32 or float64 values, one statistic for each set."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the values and their statistics."""

    @abstractmethod
    def sums(self, terms: Terms, *statistics: Tensor) -> list[Tensor]:
        """Return the sum over each set of every tensor that terms(values, *statistics) gives, in one pass.

        `terms` may be a generator that reuses a tensor's memory once it has been summed.
        """

    @abstractmethod
    def extremes(self) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value of each set; (inf, -inf) for an empty one."""

    @abstractmethod
    def count(self) -> int | Tensor:
        """Return the number of values in each set, at least 1."""

    @abstractmethod
    def map(self, function: Callable[..., Tensor], *statistics: Tensor) -> Values:
        """Return the values function(values, *statistics)."""

    def select(self, rows: Tensor) -> Values | None:
        """Return the sets with these indices, or None where that saves nothing."""
        return None

    def can_wait(self) -> bool:
        """Return whether looking at a result costs nothing, or is allowed although it waits for the device."""
        return True

    def median(self) -> Tensor:
        """Return the midpoint of the two middle values of each set."""
        count = torch.as_tensor(self.count())
        lower, upper = self._order_statistics((count - 1) // 2, count // 2)
        return lower / 2 + upper / 2

    def _order_statistics(self, *ranks: Tensor) -> list[Tensor]:
        """Return for each rank the value that so many others of its set are not above, 0 for the smallest."""
        low, high = (_to_key(end) for end in self.extremes())
        brackets = [(low, high, rank.to(low.device)) for rank in ranks]
        for _ in range(torch.finfo(self.dtype).bits):
            middles = [(low & high) + ((low ^ high) >> 1) for low, high, _ in brackets]  # rounded down, no overflow
            counts = self.sums(lambda x, *keys: [(_to_key(x) <= key).double() for key in keys], *middles)
            for k, ((low, high, rank), middle, at_most) in enumerate(zip(brackets, middles, counts, strict=True)):
                enough = at_most > rank
                low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)  # noqa: PLW2901
                brackets[k] = torch.minimum(low, high), high, rank
        return [_from_key(high, self.dtype) for _, high, _ in brackets]


@dataclass(frozen=True)
class Stored(Values):
    """Values held in memory: rows (R, m) with statistics (R, 1), or any other tensor with its reduction.

    Args:
        x: float32 or float64.
        reduction: how x makes sets.
    """

    x: Tensor
    reduction: Reduction = ROWS

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @override
    def sums(self, terms: Terms, *statistics: Tensor) -> list[Tensor]:
        return self.reduction.sums(terms(self.x, *map(self.reduction.each, statistics)))

    @override
    def extremes(self) -> tuple[Tensor, Tensor]:
        return self.reduction.amin(self.x), self.reduction.amax(self.x)

    @override
    def count(self) -> int | Tensor:
        return self.reduction.count(self.x)

    @override
    def map(self, function: Callable[..., Tensor], *statistics: Tensor) -> Values:
        return Stored(function(self.x, *map(self.reduction.each, statistics)), self.reduction)

    @override
    def select(self, rows: Tensor) -> Values | None:
        chosen = self.reduction.select(self.x, rows)
        return None if chosen is None else Stored(*chosen)

    @override
    def can_wait(self) -> bool:
        return self.x.device.type == "cpu" or not isinstance(self.reduction, Segments)

    @override
    def median(self) -> Tensor:
        if self.reduction != ROWS:
            return super().median()
        ordered, m = self.x.sort(dim=1).values, self.x.shape[1]
        return ordered[:, (m - 1) // 2, None] / 2 + ordered[:, m // 2, None] / 2


def moments(values: Values) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each set, in two passes."""
    count = values.count()
    mean = values.sums(lambda x: [x])[0] / count
    return mean, values.sums(lambda x, mean: [(x - mean).square_()], mean)[0] / count


def _to_key(x: Tensor) -> Tensor:
    """Return integers in the order of the floating point numbers x."""
    bits, top = (torch.int32, 2**31 - 1) if x.dtype == torch.float32 else (torch.int64, 2**63 - 1)
    key = x.view(bits)
    return torch.where(key < 0, key ^ top, key)


def _from_key(key: Tensor, dtype: torch.dtype) -> Tensor:
    top = 2**31 - 1 if dtype == torch.float32 else 2**63 - 1
    return torch.where(key < 0, key ^ top, key).view(dtype)
