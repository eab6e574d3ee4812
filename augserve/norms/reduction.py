"""How the values of a tensor belong together: by dimensions, or by the graph of each node.

A statistic has one number for each set of values; `each` lays it beside the values that it belongs to. Layers,
the median's solver and its gradient are written with these few operations, so that one formula serves every shape.
`augserve.norms.processes` adds the sets that are spread over the processes of torch.distributed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from augserve.errors import InputError


class Reduction(ABC):
    """Sums and extremes over sets of values; differentiable unless said otherwise."""

    @abstractmethod
    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over each set."""

    def sums(self, parts: Iterable[Tensor]) -> list[Tensor]:
        """Return the sums of several tensors of values; each is taken before the next is asked for."""
        return [self.sum(part) for part in parts]

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over each set; 0 for an empty one."""
        return self.sum(x) / self.count(x)

    @abstractmethod
    def amax(self, x: Tensor) -> Tensor:
        """Return the largest value of each set; its gradient is split evenly among ties."""

    @abstractmethod
    def amin(self, x: Tensor) -> Tensor:
        """Return the smallest value of each set; its gradient is split evenly among ties."""

    @abstractmethod
    def each(self, statistic: Tensor) -> Tensor:
        """Return the statistic of its set for every value, as far as broadcasting does not do it."""

    @abstractmethod
    def count(self, x: Tensor) -> int | Tensor:
        """Return the number of values in each set, where it is not 0, else 1."""

    def select(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Reduction] | None:
        """Return the values of the sets with these indices, and their reduction; None where that saves nothing."""
        return x[rows], self


@dataclass(frozen=True)
class Local(Reduction):
    """Sets that run along dimensions of the tensor; a statistic keeps these with size 1."""

    dims: tuple[int, ...]

    @override
    def sum(self, x: Tensor) -> Tensor:
        return x.sum(dim=self.dims, keepdim=True)

    @override
    def mean(self, x: Tensor) -> Tensor:
        return x.mean(dim=self.dims, keepdim=True)

    @override
    def amax(self, x: Tensor) -> Tensor:
        return x.amax(dim=self.dims, keepdim=True)

    @override
    def amin(self, x: Tensor) -> Tensor:
        return x.amin(dim=self.dims, keepdim=True)

    @override
    def each(self, statistic: Tensor) -> Tensor:
        return statistic

    @override
    def count(self, x: Tensor) -> int | Tensor:
        return math.prod([x.shape[d] for d in self.dims])


@dataclass(frozen=True)
class Segments(Reduction):
    """Sets of nodes: values (n, C) of `size` graphs, statistics (size, C); a graph may be empty.

    Args:
        index: int64 (n,), the graph 0..size-1 of each node, in any order.
        size: the number of graphs. Nothing here waits for the device.
    """

    index: Tensor
    size: int

    @override
    def sum(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.size, *x.shape[1:]).index_add(0, self.index, x)

    @override
    def amax(self, x: Tensor) -> Tensor:
        return self._extreme(x, -math.inf, "amax")

    @override
    def amin(self, x: Tensor) -> Tensor:
        return self._extreme(x, math.inf, "amin")

    @override
    def each(self, statistic: Tensor) -> Tensor:
        return statistic.index_select(0, self.index)

    @override
    def count(self, x: Tensor) -> int | Tensor:
        ones = x.new_ones(x.shape[0], *(1,) * (x.ndim - 1))
        return self.sum(ones).clamp_min(1)

    @override
    def select(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Reduction] | None:
        return None

    def _extreme(self, x: Tensor, empty: float, name: str) -> Tensor:
        index = self.index.view(-1, *(1,) * (x.ndim - 1)).expand_as(x)
        return x.new_full((self.size, *x.shape[1:]), empty).scatter_reduce(0, index, x, name)


def reduced_dims(x: Tensor) -> tuple[int, ...]:
    """Return every dimension of x but that of the channels: (0, 2, 3) for images."""
    return (0, *range(2, x.ndim))


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    """Return values (C,) shaped to broadcast along dimension 1 of x."""
    return values.view(1, -1, *(1,) * (x.ndim - 2))


def as_rows(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return x as (R, m): R sets in the order of the dimensions kept, their m values along `dims`."""
    kept = [d for d in range(x.ndim) if d not in dims]
    shape = math.prod([x.shape[d] for d in kept]), math.prod([x.shape[d] for d in dims])
    return x.permute((*kept, *dims)).reshape(shape)


def require_floating(x: Tensor, name: str) -> None:
    """Raise InputError where x is not of floating point."""
    if not x.is_floating_point():
        raise InputError(f"{name} expected floating point values; got {x.dtype}; convert with x.float()")
