"""The kernels of the backward pass: a small set in one program, a large one split over many.

Large sets take a launch for the partial sums (before it one for the largest differences, where exponents need
them) and one for dx, in which every program adds up the partial sums of its set by itself, in the same order; the
first split writes the gradients of the parameters.
"""

from __future__ import annotations

from augserve.norms.kernels.triton.api import jit, tl
from augserve.norms.kernels.triton.gradient import (
    gradient_coefficients,
    gradient_of,
    gradient_sums,
    largest_difference,
    needs_reach,
    scale_of,
    weight_units,
)
from augserve.norms.kernels.triton.newton import ANY
from augserve.norms.kernels.triton.solve import exponent_of
from augserve.norms.kernels.triton.state import most, summed, write_part
from augserve.norms.kernels.triton.tiles import (
    fetch,
    load,
    num_tiles,
    num_values,
    offsets_of,
    part,
    task,
    used_splits,
)


@jit
def _read(center, spread, first, second, channel, used):  # type: ignore[no-untyped-def]
    """Return (center, spread, first, second) of this program's channels, (BC) each."""
    return (
        tl.load(center + channel, mask=used, other=0.0), tl.load(spread + channel, mask=used, other=1.0),
        tl.load(first + channel, mask=used, other=0.0), tl.load(second + channel, mask=used, other=0.0),
    )  # fmt: skip


@jit
def _gamma(weight, channel, used):  # type: ignore[no-untyped-def]
    gamma = tl.zeros_like(channel).to(tl.float32) + 1.0
    if weight is not None:
        gamma = tl.load(weight + channel, mask=used, other=0.0).to(tl.float32)
    return gamma


@jit
def _write_parameters(parameters, channel, channels, used, sums, d_phi):  # type: ignore[no-untyped-def]
    """Write (3, C): d gamma, d beta, d phi."""
    tl.store(parameters + channel, sums[1].to(tl.float32), mask=used)
    tl.store(parameters + channels + channel, sums[0].to(tl.float32), mask=used)
    tl.store(parameters + 2 * channels + channel, d_phi, mask=used)


@jit
def differentiate_sets(  # type: ignore[no-untyped-def]
    dy, x, dx, weight, center, spread, first, second, exponents, parameters, exponent, eps, rows, positions,
    channels, row_stride, channel_stride, position_stride,
    KIND: tl.constexpr, PHI: tl.constexpr, LEARNED: tl.constexpr, RESIDENT: tl.constexpr,
    BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write dx and the gradients of the parameters of small sets."""
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    used = channel < channels
    values = num_values(rows, positions)
    tiles = num_tiles(rows, positions, BN, BL)
    where = (x, None, 0, rows, positions, channel, channels, row_stride, channel_stride, position_stride)
    where_dy = (dy, None, 0, rows, positions, channel, channels, row_stride, channel_stride, position_stride)
    center_, spread_, first_, second_ = _read(center, spread, first, second, channel, used)
    phi = exponent_of(exponents, exponent, channel, used)
    kept = 0
    kept_dy = 0
    if RESIDENT:
        kept = load(where, 0, BN, BL)
        kept_dy = load(where_dy, 0, BN, BL)
    largest = tl.zeros((BC,), tl.float32)
    if PHI == ANY:
        wanted = tl.max((needs_reach(phi, values) & used).to(tl.int32), 0)
        largest = largest_difference(where, kept, center_, 0, wanted * tiles, RESIDENT, BN, BL, BC)
    r = scale_of(spread_, exponent, eps, KIND)
    units = weight_units(spread_, largest, phi, values, PHI)
    statistics = (center_, first_, second_)
    sums = gradient_sums(
        where,
        kept,
        where_dy,
        kept_dy,
        statistics,
        r,
        units,
        phi,
        0,
        tiles,
        KIND,
        PHI,
        LEARNED,
        RESIDENT,
        BN,
        BL,
        BC,
    )
    gamma = _gamma(weight, channel, used)
    coefficients, d_phi = gradient_coefficients(
        sums, gamma, r, first_, spread_, units, phi, exponent, values, KIND, PHI
    )
    _write_parameters(parameters, channel, channels, used, sums, d_phi)
    for t in range(0, tiles):
        v, _ = fetch(where, kept, t, RESIDENT, BN, BL)
        g, _ = fetch(where_dy, kept_dy, t, RESIDENT, BN, BL)
        out = gradient_of(v, g, statistics, r, units, phi, coefficients, KIND, PHI)
        places, inside = offsets_of(where, t, BN, BL)
        tl.store(dx + places, out.to(dx.dtype.element_ty), mask=inside)


@jit
def reach_pass(  # type: ignore[no-untyped-def]
    x, center, exponents, partial, exponent, rows, positions, channels, row_stride, channel_stride, position_stride,
    blocks, splits, share,
    BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write the largest differences of the splits, field 4 of `partial`, where an exponent needs them."""
    _, split, channel = task(blocks, splits, 0, BC)
    values = num_values(rows, positions)
    count = used_splits(values, share, splits)
    used = channel < channels
    phi = exponent_of(exponents, exponent, channel, used)
    wanted = tl.max((needs_reach(phi, values) & used).to(tl.int32), 0)
    if (split >= count) | (wanted == 0):
        return
    where = (x, None, 0, rows, positions, channel, channels, row_stride, channel_stride, position_stride)
    middle = tl.load(center + channel, mask=used, other=0.0)
    low, high = part(num_tiles(rows, positions, BN, BL), split, count)
    largest = largest_difference(where, 0, middle, low, high, False, BN, BL, BC)
    write_part(partial, 4, largest, channels, splits, tl.cast(channel, tl.int64), split, used)


@jit
def gradient_pass(  # type: ignore[no-untyped-def]
    dy, x, dx, weight, center, spread, first, second, exponents, partial, parameters, exponent, eps, rows,
    positions, channels, row_stride, channel_stride, position_stride, blocks, splits, share,
    KIND: tl.constexpr, PHI: tl.constexpr, LEARNED: tl.constexpr, WRITE: tl.constexpr,
    BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """Write the partial sums of a split or, with WRITE, add them up and write dx."""
    _, split, channel = task(blocks, splits, WRITE, BC)
    values = num_values(rows, positions)
    count = used_splits(values, share, splits)
    if split >= count:
        return
    used = channel < channels
    at = tl.cast(channel, tl.int64)
    where = (x, None, 0, rows, positions, channel, channels, row_stride, channel_stride, position_stride)
    where_dy = (dy, None, 0, rows, positions, channel, channels, row_stride, channel_stride, position_stride)
    center_, spread_, first_, second_ = _read(center, spread, first, second, channel, used)
    phi = exponent_of(exponents, exponent, channel, used)
    largest = tl.zeros((BC,), tl.float32)
    if PHI == ANY:
        largest = tl.where(needs_reach(phi, values), most(partial, 4, channels, splits, at, used, count, SP), 0.0)
    r = scale_of(spread_, exponent, eps, KIND)
    units = weight_units(spread_, largest, phi, values, PHI)
    statistics = (center_, first_, second_)
    low, high = part(num_tiles(rows, positions, BN, BL), split, count)
    if WRITE:
        sums = (
            summed(partial, 0, channels, splits, at, used, count, SP),
            summed(partial, 1, channels, splits, at, used, count, SP),
            summed(partial, 2, channels, splits, at, used, count, SP),
            summed(partial, 3, channels, splits, at, used, count, SP),
        )
        gamma = _gamma(weight, channel, used)
        coefficients, d_phi = gradient_coefficients(
            sums, gamma, r, first_, spread_, units, phi, exponent, values, KIND, PHI
        )
        if split == 0:
            _write_parameters(parameters, channel, channels, used, sums, d_phi)
        for t in range(low, high):
            places, inside = offsets_of(where, t, BN, BL)
            v = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
            g = tl.load(dy + places, mask=inside, other=0.0).to(tl.float32)
            out = gradient_of(v, g, statistics, r, units, phi, coefficients, KIND, PHI)
            tl.store(dx + places, out.to(dx.dtype.element_ty), mask=inside)
    else:
        sums = gradient_sums(
            where, 0, where_dy, 0, statistics, r, units, phi, low, high, KIND, PHI, LEARNED, False, BN, BL, BC
        )
        for field in tl.static_range(4):
            write_part(partial, field, sums[field], channels, splits, at, split, used)
