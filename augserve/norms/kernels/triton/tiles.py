"""How a program finds its values: sets of rows and channels, cut into tiles.

A statistic belongs to a set: the rows of one group and one channel, m = rows * positions values. A program works
on BC channels of a group at once, in tiles of BN rows by BL positions, shape (BN * BL, BC). Channels-last tensors
take BC > 1, for neighbours in memory are channels there; others take BC = 1. Offsets are int64: a tensor may have
more than 2^31 elements.

`where` is what a tile needs to be found, a tuple: (pointer, order, begin, rows, positions, channel, channels, row
stride, channel stride, position stride). order None stands for rows in their own order.
"""

from __future__ import annotations

from augserve.norms.kernels.triton.api import jit, tl


@jit
def task(blocks, splits, back, BC: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return (group, split, channels (BC)) of this program; channels change fastest, as they do in memory.

    back: 1 begins with the last program, so that a pass finds in L2 what the pass before it has read last.
    """
    pid = tl.program_id(0)
    pid = tl.where(back != 0, tl.num_programs(0) - 1 - pid, pid)
    rest = pid // blocks
    return rest // splits, rest % splits, (pid % blocks) * BC + tl.arange(0, BC)


@jit
def group_rows(offsets, group, rows):  # type: ignore[no-untyped-def]
    """Return where a group begins in the order of rows, and how many rows it has."""
    begin = 0
    count = rows
    if offsets is not None:
        begin = tl.load(offsets + group)
        count = tl.load(offsets + group + 1) - begin
    return begin, count


@jit
def num_values(rows, positions):  # type: ignore[no-untyped-def]
    """Return m, the values of a set, as int64."""
    return tl.cast(rows, tl.int64) * positions


@jit
def num_tiles(rows, positions, BN: tl.constexpr, BL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return how many tiles cover a set."""
    return tl.cdiv(rows, BN) * tl.cdiv(positions, BL)


@jit
def used_splits(values, share, splits):  # type: ignore[no-untyped-def]
    """Return over how many programs a set is spread: one for every `share` values, `splits` at most.

    It depends on nothing but the set's own size, and so the order of its sums depends on no other group.
    """
    return tl.minimum(tl.maximum(tl.cdiv(values, share), 1), splits)


@jit
def part(tiles, split, used):  # type: ignore[no-untyped-def]
    """Return the range of tiles of one split."""
    wide = tl.cast(tiles, tl.int64)
    return (wide * split // used).to(tiles.dtype), (wide * (split + 1) // used).to(tiles.dtype)


@jit
def offsets_of(where, t, BN: tl.constexpr, BL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return (offsets, mask) of tile t, (BN * BL, BC) each."""
    _, order, begin, rows, positions, channel, channels, row_stride, channel_stride, position_stride = where
    index = tl.arange(0, BN * BL)
    across = tl.cdiv(positions, BL)
    row = (t // across) * BN + index // BL
    position = (t % across) * BL + index % BL
    inside = (row < rows) & (position < positions)
    if order is not None:
        row = tl.load(order + begin + row, mask=row < rows, other=0)
    start = row.to(tl.int64) * row_stride + position.to(tl.int64) * position_stride
    offsets = start[:, None] + channel.to(tl.int64)[None, :] * channel_stride
    return offsets, inside[:, None] & (channel < channels)[None, :]


@jit
def load(where, t, BN: tl.constexpr, BL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return (values as float32, mask) of tile t; 0 where the mask is false."""
    offsets, inside = offsets_of(where, t, BN, BL)
    return tl.load(where[0] + offsets, mask=inside, other=0.0).to(tl.float32), inside


@jit
def fetch(where, kept, t, RESIDENT: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return tile t as `load` does: from registers, where the set is the one tile that was kept."""
    if RESIDENT:
        x, inside = kept
    else:
        x, inside = load(where, t, BN, BL)
    return x, inside
