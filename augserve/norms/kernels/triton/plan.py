"""Sizes of tiles and splits for a shape: a fixed rule instead of tuning, since they set the order of sums.

Timed choices could differ from run to run, and with them the last bits of every statistic; a rule of the shape
gives the same bits every time. For groups it sees the channels and positions only, so that neither the number of
rows nor that of groups changes the bits of a group. Its numbers are for a card of 132 processors with 50 MB of L2.

- A tile has 2048 values, 8 for each of 256 threads: the passes compile for sm_90 to 64 registers or little more, so
  that three or four programs share a processor and about 32 KB of loads are in flight there. Tiles of groups, which
  may be a few rows, have 1024. A set that fits a tile of 4096 values stays in registers.
- BL, the positions of a tile, is the largest power of two that wastes less than a tenth of the lanes, from 32 on.
- Channels-last: 16 channels to a program, fewer (down to 32 bytes of them) where programs would be fewer than 128.
- A set is small, and one program's, up to 16384 values if there are 96 programs or more, else up to 4096; divided
  by the channels of a program, but not below 1024.
- A large set is split by 8192 values, over as many programs as make 1024 in all, 256 at most.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

RESIDENT = 4096
TILE = 2048
GROUP_TILE = 1024
SHARE = 8192
PROGRAMS = 1024
MOST_SPLITS = 256
SAMPLE = 4096  # values of a large set that give the solver its first point
WARPS = ((512, 1), (1024, 4), (math.inf, 8))


class Layout(NamedTuple):
    """Where the values of (N, C, *spatial) lie: sizes and strides, in elements, as kernels take them."""

    rows: int
    positions: int
    channels: int
    row_stride: int
    channel_stride: int
    position_stride: int

    @property
    def channels_last(self) -> bool:
        """Whether neighbours in memory are channels."""
        return self.channel_stride == 1 and self.channels > 1


class Plan(NamedTuple):
    """Sizes for one shape: tile (BN, BL, BC), programs along the channels, splits, and what is small."""

    BN: int
    BL: int
    BC: int
    blocks: int
    splits: int
    padded_splits: int
    share: int
    limit: int
    resident: bool
    warps: int
    sample_rows: int

    @property
    def tile(self) -> dict[str, int]:
        """The tile and its warps, by the names of the kernels' arguments."""
        return {"BN": self.BN, "BL": self.BL, **self._width}

    @property
    def sample_tile(self) -> dict[str, int]:
        """As `tile`, for a tile with as many rows as may be: a sample should see many of them."""
        return {"BN": self.sample_rows, "BL": self.BN * self.BL // self.sample_rows, **self._width}

    @property
    def _width(self) -> dict[str, int]:
        return {"BC": self.BC, "num_warps": self.warps}


def arrange(x: Tensor, grouped: bool) -> tuple[Tensor, Layout]:
    """Return x, copied only where it is neither contiguous nor channels-last, and its layout.

    Without groups, rows of a channels-last tensor are more positions: only strides matter then.
    """
    rows, channels = x.shape[:2]
    positions = math.prod(x.shape[2:])
    last = positions == 1 or (not x.is_contiguous() and is_channels_last(x))
    if not (last and is_channels_last(x)):
        x = x.contiguous()
    if last and grouped:
        return x, Layout(rows, positions, channels, channels * positions, 1, channels)
    if last:
        return x, Layout(1, rows * positions, channels, channels * rows * positions, 1, channels)
    return x, Layout(rows, positions, channels, channels * positions, positions, 1)


def is_channels_last(x: Tensor) -> bool:
    """Return whether the channels of x (N, C, *spatial) are its innermost dimension in memory."""
    return x.movedim(1, -1).is_contiguous()


def like(x: Tensor, other: Tensor) -> Tensor:
    """Return `other`, of the shape of x, in the memory order of x."""
    if x.is_contiguous():
        return other.contiguous()
    return other.movedim(1, -1).contiguous().movedim(-1, 1)


@lru_cache(maxsize=4096)
def plan(layout: Layout, grouped: bool, element_size: int, limit: int | None = None) -> Plan:
    """Return the sizes for a layout; `limit` overrides which sets are small (for tests)."""
    rows, positions, channels = layout[:3]
    width = 1
    if layout.channels_last:
        sector = 32 // element_size
        width = min(16, max(sector, _power_of_two(channels) // 128), _power_of_two(channels))
    blocks = -(-channels // width)
    if limit is None:
        limit = max((16384 if blocks >= 96 else 4096) // width, 1024)
    height = max((GROUP_TILE if grouped else TILE) // width, 1)
    whole = _power_of_two(rows) * _power_of_two(positions)
    resident = not grouped and rows * positions <= limit and whole * width <= RESIDENT
    if resident:
        across, down = _power_of_two(positions), _power_of_two(rows)
    else:
        across = _positions_of_tile(positions, height)
        down = height // across if grouped else min(height // across, _power_of_two(rows))
    most = min(MOST_SPLITS, _power_of_two(max(PROGRAMS // blocks, 1)))
    splits = min(most, max(-(-rows * positions // SHARE), 1))
    size = across * down * width
    warps = next(warps for top, warps in WARPS if size <= top)
    sample = down if grouped else min(_power_of_two(rows), 32, across * down)
    return Plan(down, across, width, blocks, splits, most, SHARE, limit, resident, warps, sample)


def _power_of_two(n: int) -> int:
    """Return the smallest power of two that is not below n >= 1."""
    return 1 << (n - 1).bit_length()


def _positions_of_tile(positions: int, height: int) -> int:
    """Return the power of two up to `height` that covers the positions with the fewest idle lanes."""
    sizes = [min(_power_of_two(positions), height)]
    while sizes[-1] > 32:
        sizes.append(sizes[-1] // 2)
    used = [positions / (-(-positions // size) * size) for size in sizes]
    enough = [size for size, share in zip(sizes, used, strict=True) if share >= 0.9]
    return enough[0] if enough else sizes[used.index(max(used))]


def group_order(group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return the rows group after group (N), and where each group begins (G + 1), both int64."""
    ids, order = torch.sort(group, stable=True)
    edges = torch.arange(groups + 1, device=group.device, dtype=ids.dtype)
    return order, torch.searchsorted(ids, edges)
