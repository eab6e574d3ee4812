"""Which rows are normalized together, for the layers: prepared once, used by every layer of a network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from augserve.errors import StatisticsError
from augserve.norms.kernels.spec import Groups
from augserve.statistics import Statistics


@dataclass(frozen=True)
class Grouping:
    """Rows 0..N-1 cut into statistics groups.

    Args:
        indices: for each group, the int64 indices of its rows, in order.
        inverse: int64 (N,), where each row stands when the groups are laid end to end.
        statistics: for each group, its own.
        sizes: for each group, how many rows it has.
        groups: the same grouping, as the kernels take it.
        tracked_weight: float32 (G,), lambda of each group.
    """

    indices: tuple[Tensor, ...]
    inverse: Tensor
    statistics: tuple[Statistics, ...]
    sizes: tuple[int, ...]
    groups: Groups
    tracked_weight: Tensor

    def rows(self, n: int) -> tuple[Tensor, ...]:
        """Return the row indices of each group, for a batch of n rows."""
        if n != len(self.inverse):
            raise StatisticsError(f"expected a batch of {len(self.inverse)} rows, as many as `group` has; got {n}")
        return self.indices

    def join(self, parts: list[Tensor]) -> Tensor:
        """Put the groups' rows back into the order of the batch."""
        return torch.cat(parts)[self.inverse]


def make_grouping(group: Tensor, statistics: Statistics | Sequence[Statistics]) -> Grouping:
    """Prepare a grouping from the group of each row.

    Args:
        group: int64 (N,), ids 0..G-1; every id below G occurs.
        statistics: one for all groups, or one for each.

    Raises:
        StatisticsError: ids that are not 0..G-1, or another number of statistics than groups.
    """
    if group.ndim != 1 or group.is_floating_point() or group.is_complex() or group.dtype == torch.bool:
        raise StatisticsError(f"expected group as integers (N,); got {group.dtype} {tuple(group.shape)}")
    ids = torch.unique(group)
    if not torch.equal(ids, torch.arange(len(ids), device=group.device, dtype=ids.dtype)):
        raise StatisticsError(f"expected group ids 0..G-1, each of them used; got {ids.tolist()}")
    indices = tuple((group == i).nonzero()[:, 0] for i in ids)
    each = (statistics,) * len(ids) if isinstance(statistics, Statistics) else tuple(statistics)
    if len(each) != len(ids):
        raise StatisticsError(f"expected statistics for each of the {len(ids)} groups; got {len(each)}")
    order = torch.cat(indices) if indices else group.new_empty(0, dtype=torch.int64)
    sizes = tuple(len(index) for index in indices)
    offsets = torch.tensor([0, *itertools.accumulate(sizes)], device=group.device)
    weights = [s.weight(rows) for s, rows in zip(each, sizes, strict=True)]
    tracked_weight = torch.tensor(weights, device=group.device, dtype=torch.float32)
    return Grouping(indices, torch.argsort(order), each, sizes, Groups(order, offsets), tracked_weight)


def weighted(shares: Sequence[float], statistics: Sequence[Tensor]) -> Tensor:
    """Return the sum of statistics (C,), each times its group's share of the rows."""
    return torch.stack([share * statistic for share, statistic in zip(shares, statistics, strict=True)]).sum(dim=0)
