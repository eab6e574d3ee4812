"""The backward pass: one reduction over dy and x, then dx, value by value.

AugNorm, with r = (var + eps)^(-1/2), t = (x - mu) r, A = sum dy, B = sum dy t, w = |x - mu|^(phi - 2), W = sum w:

    d mu = -gamma r (A - (mean - mu) r B)
    dx   = gamma r (dy - t B / m) + d mu w / W
    d phi = d mu sum sgn(x - mu) |x - mu|^(phi - 1) ln|x - mu| / ((phi - 1) W)

RobustNorm, with D = (max - min)^p + eps and t = (x - mean) / D; d range is split evenly among ties:

    dx = gamma / D (dy - A / m) + d range ([x = max] / n_max - [x = min] / n_min)
    d range = -gamma / D B p (max - min)^(p - 1)

In both d gamma = B and d beta = A. Weights are taken of |x - mu| / reach, which changes none of the formulas: reach
is a standard deviation for phi <= 2, where no power overflows; sqrt(m) of them, which no difference exceeds, for
phi > 2; and the largest difference itself, for one more reading, where phi is so large that the weights of all
values could vanish. A value at mu takes the weight of a difference of `NEAREST` standard deviations, so that it has
all the weight in the limit. Source: `augserve.norms.kernels.reference`, `augserve.norms.median.gradient`.
"""

from __future__ import annotations

from augserve.norms.kernels.triton.api import constant, jit, tl
from augserve.norms.kernels.triton.newton import ANY, LARGEST, MEAN, ROOT, power
from augserve.norms.kernels.triton.statistics import AUG, power_of_range
from augserve.norms.kernels.triton.tiles import fetch

NEAREST = constant(1.42e-14)  # eps^2 of float32
VANISHING = constant(60.0)  # powers of two that sqrt(m)^(2 - phi) may lose
LN_2 = constant(0.6931471805599453)


@jit
def needs_reach(phi, values):  # type: ignore[no-untyped-def]
    """Return for which channels the largest difference itself is needed, (BC) bool."""
    return (phi - 2) * 0.5 * tl.log2(tl.cast(values, tl.float32)) > VANISHING


@jit
def largest_difference(  # type: ignore[no-untyped-def]
    where, kept, center, first, last,
    RESIDENT: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Return max |x - center| over the tiles [first, last), (BC)."""
    most = tl.zeros((BN * BL, BC), tl.float32)
    for t in range(first, last):
        x, inside = fetch(where, kept, t, RESIDENT, BN, BL)
        most = tl.maximum(most, tl.where(inside, tl.abs(x - center[None, :]), 0.0))
    return tl.max(most, 0)


@jit
def weight_units(spread, largest, phi, values, PHI: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return (reach, floor): the unit of differences and the smallest one in it, (BC) each."""
    std = tl.sqrt(spread)
    std = tl.where((std > 0) & (std <= LARGEST), std, 1.0)
    floor = tl.zeros_like(std) + NEAREST
    if PHI == ANY:
        root = tl.sqrt(tl.cast(values, tl.float32))
        exact = needs_reach(phi, values) & (largest > 0)
        floor = tl.where(exact, floor, floor / root)
        std = tl.where(exact, largest, std * root)
    return std, floor


@jit
def scale_of(spread, exponent, eps, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return r with t = (x - center) r, (BC)."""
    divisor = tl.sqrt(spread + eps) if KIND == AUG else power_of_range(spread, exponent) + eps
    return 1.0 / divisor


@jit
def _weight(d, unit, floor, phi, PHI: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return (a, a^(phi - 2)) with a = |d| / unit, at least the floor."""
    a = tl.maximum(tl.abs(d) * (1.0 / unit)[None, :], floor[None, :])
    w = tl.rsqrt(a) if PHI == ROOT else power(a, phi[None, :] - 2)
    return a, w


@jit
def gradient_sums(  # type: ignore[no-untyped-def]
    where, kept, where_dy, kept_dy, statistics, r, units, phi, first, last,
    KIND: tl.constexpr, PHI: tl.constexpr, LEARNED: tl.constexpr, RESIDENT: tl.constexpr,
    BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Return sums over the tiles [first, last), (BC) each: dy; dy t; w or [x = min]; for phi's slope or [x = max].

    statistics: (center, low, high); units: as `weight_units`.
    """
    center, low, high = statistics
    unit, floor = units
    sum_dy = tl.zeros((BN * BL, BC), tl.float32)
    sum_dy_t = tl.zeros((BN * BL, BC), tl.float32)
    third = tl.zeros((BN * BL, BC), tl.float32)
    fourth = tl.zeros((BN * BL, BC), tl.float32)
    for t in range(first, last):
        x, inside = fetch(where, kept, t, RESIDENT, BN, BL)
        dy, _ = fetch(where_dy, kept_dy, t, RESIDENT, BN, BL)
        d = x - center[None, :]
        sum_dy += dy
        sum_dy_t += tl.where(inside, dy * (d * r[None, :]), 0.0)
        if KIND != AUG:
            third += tl.where(inside & (x == low[None, :]), 1.0, 0.0)
            fourth += tl.where(inside & (x == high[None, :]), 1.0, 0.0)
        elif PHI != MEAN:
            a, w = _weight(d, unit, floor, phi, PHI)
            third += tl.where(inside, w, 0.0)
            if LEARNED:
                sign = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
                fourth += tl.where(inside, sign * a * w * tl.log2(a), 0.0)
    return tl.sum(sum_dy, 0), tl.sum(sum_dy_t, 0), tl.sum(third, 0), tl.sum(fourth, 0)


@jit
def gradient_coefficients(  # type: ignore[no-untyped-def]
    sums, gamma, r, first_statistic, spread, units, phi, exponent, values, KIND: tl.constexpr, PHI: tl.constexpr
):
    """Return ((of dy, of t, of w or [x = min], of [x = max], constant), d phi), (BC) each, from four sums.

    dx is the sum of the products; sums may be float64.
    """
    sum_dy = sums[0].to(tl.float32)
    sum_dy_t = sums[1].to(tl.float32)
    third = sums[2].to(tl.float32)
    fourth = sums[3].to(tl.float32)
    share = 1.0 / tl.cast(values, tl.float32)
    of_dy = gamma * r
    zero = tl.zeros_like(of_dy)
    d_phi = zero
    if KIND == AUG:
        of_t = -of_dy * sum_dy_t * share
        d_mu = -of_dy * (sum_dy - first_statistic * r * sum_dy_t)
        of_third = zero
        of_fourth = zero
        even = d_mu * share
        if PHI != MEAN:
            weighted = (third > 0) & (values > 2)
            total = tl.where(third > 0, third, 1.0)
            of_third = tl.where(weighted, d_mu / total, 0.0)
            even = tl.where(weighted, 0.0, even)
            d_phi = tl.where(values > 2, d_mu * units[0] * fourth * LN_2 / ((phi - 1) * total), 0.0)
    else:
        of_t = zero
        extent = tl.where(spread == 0, 1.0, spread)
        slope = tl.where(spread == 0, 0.0, exponent * power(extent, exponent - 1))
        d_range = -of_dy * sum_dy_t * slope
        of_third = -d_range / tl.maximum(third, 1.0)
        of_fourth = d_range / tl.maximum(fourth, 1.0)
        even = -of_dy * sum_dy * share
    return (of_dy, of_t, of_third, of_fourth, even), d_phi


@jit
def gradient_of(  # type: ignore[no-untyped-def]
    x, dy, statistics, r, units, phi, coefficients, KIND: tl.constexpr, PHI: tl.constexpr
):
    """Return dx of one tile, float32."""
    center, low, high = statistics
    of_dy, of_t, of_third, of_fourth, even = coefficients
    d = x - center[None, :]
    dx = dy * of_dy[None, :] + even[None, :]
    if KIND == AUG:
        dx += d * (r * of_t)[None, :]
        if PHI != MEAN:
            _, w = _weight(d, units[0], units[1], phi, PHI)
            dx += w * of_third[None, :]
    else:
        dx += tl.where(x == low[None, :], of_third[None, :], 0.0)
        dx += tl.where(x == high[None, :], of_fourth[None, :], 0.0)
    return dx
