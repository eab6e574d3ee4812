"""The solver over large sets: each launch is one pass, and the values of a set are split over many programs.

A sample of each set gives a pivot and a first point; one pass over everything gives the moments and, for phi < 2,
the first Newton step; each further launch is one Newton pass, in which a set that has converged returns before it
reads a value. Nothing is awaited on the host, which launches a fixed number of passes; `solve_sets` finishes.
"""

from __future__ import annotations

from augserve.norms.kernels.triton.api import constant, jit, tl
from augserve.norms.kernels.triton.moments import frame_of, own_moments, shared_sums
from augserve.norms.kernels.triton.newton import MEAN, initial_state, is_finite, is_running, iterate, pass_sums
from augserve.norms.kernels.triton.solve import exponent_of, tracked_of
from augserve.norms.kernels.triton.state import after_moments, after_pass, write_part, write_state
from augserve.norms.kernels.triton.tiles import group_rows, num_tiles, num_values, part, task, used_splits

SAMPLE_RTOL = constant(5e-3)  # a sample of some thousand values is no nearer to the whole than this
SAMPLE_STEPS = constant(8)


@jit
def sample_sets(  # type: ignore[no-untyped-def]
    x, order, offsets, tracked_weight, exponents, seeds, exponent, rows, positions, channels, row_stride,
    channel_stride, position_stride, sets, blocks, limit, sampled,
    PHI: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write the seeds (3, sets) of large sets from about `sampled` tiles of each: mean, 1 / std, median in z."""
    group, _, channel = task(blocks, 1, 0, BC)
    begin, rows = group_rows(offsets, group, rows)
    values = num_values(rows, positions)
    if values <= limit:
        return
    used = channel < channels
    at = tl.cast(group, tl.int64) * channels + channel
    where = (x, order, begin, rows, positions, channel, channels, row_stride, channel_stride, position_stride)
    tracked = tracked_of(tracked_weight, order, begin)
    tiles = num_tiles(rows, positions, BN, BL)
    stride = tl.maximum(tiles // sampled, 1)
    read = tl.where(tracked == 1, 0, tiles)
    phi = exponent_of(exponents, exponent, channel, used)
    few = (sampled + 1) * (BN * BL)
    moments, _ = own_moments(where, 0, stride // 2, read, stride, few, False, True, BN, BL, BC)
    frame, offset, low, high = frame_of(moments)
    state = initial_state(low, high, offset, phi, offset, SAMPLE_RTOL)
    if PHI != MEAN:
        state = iterate(
            where,
            0,
            state,
            frame,
            phi,
            stride // 2,
            read,
            stride,
            0,  # how many values a sample has is not known
            SAMPLE_RTOL,
            SAMPLE_STEPS,
            PHI,
            False,
            BN,
            BL,
            BC,
        )
    inverse = frame[2] * frame[0]
    sound = is_finite(moments[3]) & (moments[3] > 0) & is_finite(inverse) & is_finite(moments[1] / frame[0])
    pivot = moments[1] / frame[0]
    tl.store(seeds + at, tl.where(is_finite(pivot), pivot, 0.0), mask=used)
    tl.store(seeds + sets + at, tl.where(sound, inverse, 1.0), mask=used)
    tl.store(seeds + 2 * sets + at, tl.where(sound & is_finite(state[3]), state[3], 0.0), mask=used)


@jit
def moments_pass(  # type: ignore[no-untyped-def]
    x, order, offsets, tracked_weight, exponents, seeds, partial, exponent, rows, positions, channels, row_stride,
    channel_stride, position_stride, sets, blocks, splits, share, limit,
    PHI: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write the partial sums (6, sets, splits) of moments, extremes and Newton's step at the sampled point."""
    group, split, channel = task(blocks, splits, 0, BC)
    begin, rows = group_rows(offsets, group, rows)
    values = num_values(rows, positions)
    count = used_splits(values, share, splits)
    tracked = tracked_of(tracked_weight, order, begin)
    if (values <= limit) | (split >= count) | (tracked == 1):
        return
    used = channel < channels
    at = tl.cast(group, tl.int64) * channels + channel
    where = (x, order, begin, rows, positions, channel, channels, row_stride, channel_stride, position_stride)
    phi = exponent_of(exponents, exponent, channel, used)
    pivot = tl.load(seeds + at, mask=used, other=0.0)
    inverse = tl.load(seeds + sets + at, mask=used, other=1.0)
    y = tl.load(seeds + 2 * sets + at, mask=used, other=0.0)
    first, last = part(num_tiles(rows, positions, BN, BL), split, count)
    sums = shared_sums(where, pivot, inverse, y, phi, first, last, PHI, BN, BL, BC)
    for field in tl.static_range(6):
        write_part(partial, field, sums[field], sets, splits, at, split, used)


@jit
def newton_pass(  # type: ignore[no-untyped-def]
    x, order, offsets, tracked_weight, exponents, seeds, partial, memory, next_partial, next_memory, exponent, rtol,
    max_steps, rows, positions, channels, row_stride, channel_stride, position_stride, sets, blocks, splits, share,
    limit, back,
    PHI: tl.constexpr, FIRST: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """Advance the state by the last pass's sums and, where a set still runs, write the sums of the next one."""
    group, split, channel = task(blocks, splits, back, BC)
    begin, rows = group_rows(offsets, group, rows)
    values = num_values(rows, positions)
    count = used_splits(values, share, splits)
    tracked = tracked_of(tracked_weight, order, begin)
    if (values <= limit) | (split >= count) | (tracked == 1):
        return
    used = channel < channels
    at = tl.cast(group, tl.int64) * channels + channel
    phi = exponent_of(exponents, exponent, channel, used)
    if FIRST:
        state, moments, again = after_moments(
            partial, seeds, sets, splits, at, used, count, phi, values, rtol, max_steps, PHI, SP
        )
    else:
        state, moments, again = after_pass(
            memory, partial, sets, splits, at, used, count, phi, values, rtol, max_steps, PHI, SP
        )
    if split == 0:
        write_state(next_memory, sets, at, used, state, moments, again)
    if tl.max((is_running(state, rtol, max_steps) & used).to(tl.int32), 0) == 0:
        return
    where = (x, order, begin, rows, positions, channel, channels, row_stride, channel_stride, position_stride)
    frame, _, _, _ = frame_of(moments)
    first, last = part(num_tiles(rows, positions, BN, BL), split, count)
    sums = pass_sums(where, 0, state, frame, phi, first, last, 1, PHI, False, BN, BL, BC)
    for field in tl.static_range(4):
        write_part(next_partial, field, sums[field], sets, splits, at, split, used)
