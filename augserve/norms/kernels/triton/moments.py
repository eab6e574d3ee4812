"""Mean, variance and extremes of a set, and the units that the solver works in.

Two ways. `own_moments` reads a set twice, as `augserve.norms.median.solve` does: extremes and a rough mean, which
give a power of two that nothing overflows with, then the deviations from the rough mean. `shared_sums` reads it
once: deviations from a pivot that a sample gave, to which all programs of a set refer, so that their sums are
added as they are. With f the fraction of the set that was sampled, the pivot lies within sqrt((1 - f) / f)
standard deviations of the mean (Cauchy-Schwarz), so that little is lost by cancellation; `from_sums` says where
too much was, or where something overflowed, and such a set starts again with the first way.

Sums over a program are float32, on them float64. Moments are the tuple (scale, shift, rest, var, low, high), in
units of x * scale: shift is the mean rounded to float32, rest what the rounding left out.
"""

from __future__ import annotations

from augserve.norms.kernels.triton.api import constant, jit, tl
from augserve.norms.kernels.triton.newton import ANY, MEAN, is_finite, weight_of
from augserve.norms.kernels.triton.tiles import fetch, load

CANCELLATION = constant(1e4)  # (pivot - mean)^2 over var, beyond which a float32 sum has too few digits left
SMALLEST = constant(1e-28)  # variances between which float32 sums of squares are safe
GREATEST = constant(1e30)


@jit
def power_of_two(magnitude):  # type: ignore[no-untyped-def]
    """Return 2^-k with magnitude * 2^-k in [0.5, 1), |k| <= 120; 1 where the magnitude is 0 or not finite."""
    exponent = ((magnitude.to(tl.int32, bitcast=True) >> 23) & 255) - 126
    exponent = tl.minimum(tl.maximum(exponent, -120), 120)
    scale = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    return tl.where((magnitude > 0) & is_finite(magnitude), scale, 1.0)


@jit
def own_moments(  # type: ignore[no-untyped-def]
    where, kept, first, last, stride, values,
    RESIDENT: tl.constexpr, SAMPLE: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Return (moments, m) of the tiles first, first + stride, ... below last; a sample's values are counted."""
    infinity = float("inf")
    least = tl.zeros((BN * BL, BC), tl.float32) + infinity
    most = tl.zeros((BN * BL, BC), tl.float32) - infinity
    total = tl.zeros((BN * BL, BC), tl.float32)
    seen = tl.zeros((BN * BL, BC), tl.float32)
    shrink = 1.0 / tl.maximum(tl.cast(values, tl.float32), 1.0)  # so that the sum of finite values is finite
    for t in range(first, last, stride):
        x, inside = fetch(where, kept, t, RESIDENT, BN, BL)
        least = tl.minimum(least, tl.where(inside, x, infinity))
        most = tl.maximum(most, tl.where(inside, x, -infinity))
        total += x * shrink
        if SAMPLE:
            seen += tl.where(inside, 1.0, 0.0)
    low = tl.min(least, 0)
    high = tl.max(most, 0)
    if SAMPLE:
        count = tl.maximum(tl.sum(seen, 0), 1.0).to(tl.float64)
    else:
        count = tl.zeros((BC,), tl.float64) + tl.maximum(values, 1)
    rough = tl.sum(total, 0).to(tl.float64) / (count * shrink)
    scale = power_of_two(tl.maximum(tl.abs(low), tl.abs(high)))
    center = rough.to(tl.float32) * scale
    first_sum = tl.zeros((BN * BL, BC), tl.float32)
    second_sum = tl.zeros((BN * BL, BC), tl.float32)
    for t in range(first, last, stride):
        x, inside = fetch(where, kept, t, RESIDENT, BN, BL)
        d = tl.where(inside, x * scale[None, :] - center[None, :], 0.0)
        first_sum += d
        second_sum += d * d
    shift, rest, var, _ = _central(tl.sum(first_sum, 0), tl.sum(second_sum, 0), center, count)
    return (scale, shift, rest, var, low, high), count


@jit
def _central(first_sum, second_sum, pivot, count):  # type: ignore[no-untyped-def]
    """Return (shift, rest, var, (mean - pivot)^2) from sums of d and d^2 about the pivot."""
    extra = first_sum.to(tl.float64) / count
    var = second_sum.to(tl.float64) / count - extra * extra
    mean = pivot.to(tl.float64) + extra
    shift = mean.to(tl.float32)
    return shift, (mean - shift).to(tl.float32), tl.where(var < 0, 0.0, var).to(tl.float32), extra * extra


@jit
def shared_sums(  # type: ignore[no-untyped-def]
    where, pivot, inverse, y, phi, first, last,
    PHI: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Return sums of d and d^2, extremes, and for phi < 2 sums of w and w (y - z) with z = d * inverse, (BC) each.

    d = x - pivot; pivot, inverse, y (BC): what the sample found, y in units of z.
    """
    infinity = float("inf")
    first_sum = tl.zeros((BN * BL, BC), tl.float32)
    second_sum = tl.zeros((BN * BL, BC), tl.float32)
    least = tl.zeros((BN * BL, BC), tl.float32) + infinity
    most = tl.zeros((BN * BL, BC), tl.float32) - infinity
    total = tl.zeros((BN * BL, BC), tl.float32)
    g = tl.zeros((BN * BL, BC), tl.float32)
    for t in range(first, last):
        x, inside = load(where, t, BN, BL)
        d = tl.where(inside, x - pivot[None, :], 0.0)
        first_sum += d
        second_sum += d * d
        least = tl.minimum(least, tl.where(inside, x, infinity))
        most = tl.maximum(most, tl.where(inside, x, -infinity))
        if (PHI != MEAN) & (PHI != ANY):
            distance = y[None, :] - d * inverse[None, :]
            w = tl.where(inside, weight_of(distance, phi[None, :], PHI), 0.0)
            total += w
            g += w * distance
    return (
        tl.sum(first_sum, 0), tl.sum(second_sum, 0), tl.min(least, 0), tl.max(most, 0),
        tl.sum(total, 0), tl.sum(g, 0),
    )  # fmt: skip


@jit
def from_sums(first_sum, second_sum, low, high, pivot, values):  # type: ignore[no-untyped-def]
    """Return (moments, again): moments with scale 1, and 1.0 where a set has to start again, else 0.0."""
    count = tl.zeros_like(first_sum).to(tl.float64) + tl.maximum(values, 1)
    shift, rest, var, squared = _central(first_sum, second_sum, pivot, count)
    safe = (var >= SMALLEST) & (var <= GREATEST) & (squared <= var * CANCELLATION)
    safe = safe | ((low == high) & is_finite(low) & is_finite(shift))
    return (tl.zeros_like(low) + 1.0, shift, rest, var, low, high), tl.where(safe, 0.0, 1.0)


@jit
def frame_of(moments):  # type: ignore[no-untyped-def]
    """Return ((scale, shift, inverse_std), offset, low, high): the units z, and mean and extremes in them."""
    scale, shift, rest, var, low, high = moments
    inverse_std = 1.0 / tl.where(var > 0, tl.sqrt(var), 1.0)
    offset = rest * inverse_std
    low = (low * scale - shift) * inverse_std
    high = (high * scale - shift) * inverse_std
    return (scale, shift, inverse_std), offset, low, high
