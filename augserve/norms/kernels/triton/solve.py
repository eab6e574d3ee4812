"""A set from beginning to end in one program: statistics, and y where the set is small.

A small set is read by one program only, which keeps it in registers where it is one tile (RESIDENT), and else
reads it again from the cache on every pass. The same kernel, with FRESH = False, finishes large sets after the
passes that split them: it takes up the state that these left, goes on by itself where that has not converged, and
starts again where float32 sums overflowed or cancelled. So the certificate holds without a look from the host.
"""

from __future__ import annotations

from augserve.norms.kernels.triton.api import jit, tl
from augserve.norms.kernels.triton.moments import frame_of, own_moments
from augserve.norms.kernels.triton.newton import MEAN, initial_state, iterate
from augserve.norms.kernels.triton.state import after_moments, after_pass, choose, choose_moments
from augserve.norms.kernels.triton.statistics import coefficients, write_statistics
from augserve.norms.kernels.triton.tiles import (
    fetch,
    group_rows,
    load,
    num_tiles,
    num_values,
    offsets_of,
    part,
    task,
    used_splits,
)


@jit
def exponent_of(exponents, exponent, channel, used):  # type: ignore[no-untyped-def]
    """Return phi of each channel, (BC)."""
    phi = tl.zeros_like(channel).to(tl.float32) + exponent
    if exponents is not None:
        phi = tl.load(exponents + channel, mask=used, other=2.0).to(tl.float32)
    return phi


@jit
def tracked_of(tracked_weight, order, begin):  # type: ignore[no-untyped-def]
    """Return the weight of the running statistics for a group: that of its first row."""
    tracked = 0.0
    if tracked_weight is not None:
        tracked = tl.load(tracked_weight + tl.load(order + begin)).to(tl.float32)
    return tracked


@jit
def solve_sets(  # type: ignore[no-untyped-def]
    x, y, order, offsets, tracked_weight, running_center, running_spread, weight, bias, exponents, start,
    statistics, memory, partial, seeds, exponent, eps, rtol, max_steps, rows, positions, channels, row_stride,
    channel_stride, position_stride, sets, blocks, splits, share, limit,
    KIND: tl.constexpr, PHI: tl.constexpr, FRESH: tl.constexpr, FIRST: tl.constexpr, RESIDENT: tl.constexpr,
    BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """Write the statistics of small sets (FRESH, at most `limit` values) and their y, or finish large ones."""
    group, _, channel = task(blocks, 1, 0, BC)
    begin, rows = group_rows(offsets, group, rows)
    values = num_values(rows, positions)
    if (values <= limit) != FRESH:
        return
    used = channel < channels
    at = tl.cast(group, tl.int64) * channels + channel
    where = (x, order, begin, rows, positions, channel, channels, row_stride, channel_stride, position_stride)
    tracked = tracked_of(tracked_weight, order, begin)
    tiles = num_tiles(rows, positions, BN, BL)
    read = tl.where(tracked == 1, 0, tiles)  # the running statistics alone: these values do not matter
    phi = exponent_of(exponents, exponent, channel, used)
    kept = 0
    if RESIDENT:
        kept = load(where, 0, BN, BL)
    if FRESH:
        moments, _ = own_moments(where, kept, 0, read, 1, values, RESIDENT, False, BN, BL, BC)
        frame, offset, low, high = frame_of(moments)
        point = offset
        if start is not None:
            point = (tl.load(start + channel, mask=used, other=0.0).to(tl.float32) * frame[0] - frame[1]) * frame[2]
        state = initial_state(low, high, offset, phi, point, rtol)
    else:
        count = used_splits(values, share, splits)
        if FIRST:
            state, moments, again = after_moments(
                partial, seeds, sets, splits, at, used, count, phi, values, rtol, max_steps, PHI, SP
            )
        else:
            state, moments, again = after_pass(
                memory, partial, sets, splits, at, used, count, phi, values, rtol, max_steps, PHI, SP
            )
        redo = tl.where(tl.max(again, 0) > 0, read, 0)
        own, _ = own_moments(where, kept, 0, redo, 1, values, RESIDENT, False, BN, BL, BC)
        moments = choose_moments(again > 0, own, moments)
        frame, offset, low, high = frame_of(moments)
        state = choose(again > 0, initial_state(low, high, offset, phi, offset, rtol), state)
    if PHI != MEAN:
        limit_steps = tl.where((tracked == 1) | (values <= 2), 0, max_steps)
        state = iterate(
            where, kept, state, frame, phi, 0, read, 1, values, rtol, limit_steps, PHI, RESIDENT, BN, BL, BC
        )
    center, spread = write_statistics(statistics, sets, at, used, state, moments, values, rtol, KIND, PHI)
    if y is not None:
        center, factor, shift = coefficients(
            center,
            spread,
            tracked,
            channel,
            used,
            running_center,
            running_spread,
            weight,
            bias,
            exponent,
            eps,
            KIND,
        )
        for t in range(0, tiles):
            v, inside = fetch(where, kept, t, RESIDENT, BN, BL)
            out = (v - center[None, :]) * factor[None, :] + shift[None, :]
            places, inside = offsets_of(where, t, BN, BL)
            tl.store(y + places, out.to(y.dtype.element_ty), mask=inside)


@jit
def normalize(  # type: ignore[no-untyped-def]
    x, y, order, offsets, tracked_weight, running_center, running_spread, weight, bias, statistics, exponent, eps,
    rows, positions, channels, row_stride, channel_stride, position_stride, sets, blocks, splits, share, limit,
    KIND: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write y of large sets, whose statistics are there; every program its share of a set."""
    group, split, channel = task(blocks, splits, 1, BC)
    begin, rows = group_rows(offsets, group, rows)
    values = num_values(rows, positions)
    count = used_splits(values, share, splits)
    if (values <= limit) | (split >= count):
        return
    used = channel < channels
    at = tl.cast(group, tl.int64) * channels + channel
    where = (x, order, begin, rows, positions, channel, channels, row_stride, channel_stride, position_stride)
    tracked = tracked_of(tracked_weight, order, begin)
    center = tl.load(statistics + at, mask=used, other=0.0)
    spread = tl.load(statistics + sets + at, mask=used, other=1.0)
    center, factor, shift = coefficients(
        center, spread, tracked, channel, used, running_center, running_spread, weight, bias, exponent, eps, KIND
    )
    first, last = part(num_tiles(rows, positions, BN, BL), split, count)
    for t in range(first, last):
        places, inside = offsets_of(where, t, BN, BL)
        v = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        out = (v - center[None, :]) * factor[None, :] + shift[None, :]
        tl.store(y + places, out.to(y.dtype.element_ty), mask=inside)
