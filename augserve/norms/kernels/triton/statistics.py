"""From a finished solver to statistics in units of the data, and from those to the coefficients of y.

Statistics are float32 (FIELDS, groups, channels), by field: center, spread, first, second, lower, upper, steps,
status, mean, var. The first four are what the backward pass takes: for AugNorm (mu, var about mu, mean - mu, 0),
for both kinds of RobustNorm (mean, max - min, min, max). A set with NaN or infinite values has NaN everywhere.
"""

from __future__ import annotations

from augserve.norms.kernels.triton.api import constant, jit, tl
from augserve.norms.kernels.triton.newton import MEAN, is_finite, power
from augserve.norms.median.result import Status

AUG = constant(0)
ROBUST = constant(1)
ROBUST_RANGE = constant(2)
FIELDS = 10
MAX_STEPS = constant(float(Status.MAX_STEPS))
NOT_FINITE = constant(float(Status.NOT_FINITE))


@jit
def _original(end, moments, few):  # type: ignore[no-untyped-def]
    """Return a point of the solver in units of the data, within their extremes; of few values their midrange."""
    scale, shift, _, var, low, high = moments
    std = tl.where(var > 0, tl.sqrt(var), 1.0).to(tl.float64)
    at = ((shift.to(tl.float64) + std * end) / scale).to(tl.float32)
    return tl.where(few, low / 2 + high / 2, tl.minimum(tl.maximum(at, low), high))


@jit
def write_statistics(  # type: ignore[no-untyped-def]
    statistics, sets, at, used, state, moments, values, rtol, KIND: tl.constexpr, PHI: tl.constexpr
):
    """Write the statistics of the sets `at` (BC) where the mask `used` holds; return (center, spread).

    values: m; up to two have their midpoint for a center whatever the exponent.
    """
    scale, shift, rest, var, low, high = moments
    lower = state[1]
    upper = state[2]
    inside = (state[3] > lower) & (state[3] < upper)
    root = tl.where(inside, state[3], (lower + upper) / 2)
    mean = (shift.to(tl.float64) + rest) / scale
    wrong = is_finite(var) == 0
    nan = float("nan")
    few = tl.zeros_like(lower) + values <= 2
    var = var / scale / scale
    if KIND == AUG:
        center = mean.to(tl.float32)
        below = center
        above = center
        steps = tl.zeros_like(center)
        status = tl.zeros_like(center)
        if PHI != MEAN:
            center = _original(root, moments, few)
            below = _original(lower, moments, few)
            above = _original(upper, moments, few)
            steps = tl.where(few, 0.0, state[9])
            status = tl.where((upper - lower > rtol) & (few == 0), MAX_STEPS, 0.0)
        first = tl.where(wrong, nan, (mean - center).to(tl.float32))
        spread = var + first * first
        second = tl.where(wrong, nan, 0.0)
        tl.store(statistics + 4 * sets + at, tl.where(wrong, nan, below), mask=used)
        tl.store(statistics + 5 * sets + at, tl.where(wrong, nan, above), mask=used)
        tl.store(statistics + 6 * sets + at, steps, mask=used)
        tl.store(statistics + 7 * sets + at, tl.where(wrong, NOT_FINITE, status), mask=used)
        tl.store(statistics + 8 * sets + at, mean.to(tl.float32), mask=used)
        tl.store(statistics + 9 * sets + at, var, mask=used)
    else:
        center = mean.to(tl.float32)
        spread = high - low
        first = tl.where(wrong, nan, low)
        second = tl.where(wrong, nan, high)
    center = tl.where(wrong, nan, center)
    spread = tl.where(wrong, nan, spread)
    tl.store(statistics + at, center, mask=used)
    tl.store(statistics + sets + at, spread, mask=used)
    tl.store(statistics + 2 * sets + at, first, mask=used)
    tl.store(statistics + 3 * sets + at, second, mask=used)
    return center, spread


@jit
def power_of_range(extent, p):  # type: ignore[no-untyped-def]
    """Return extent^p, 0 for 0."""
    return tl.where(extent == 0, 0.0, power(tl.where(extent == 0, 1.0, extent), p))


@jit
def coefficients(  # type: ignore[no-untyped-def]
    center, spread, tracked, channel, used, running_center, running_spread, weight, bias, exponent, eps,
    KIND: tl.constexpr,
):  # fmt: skip
    """Return (center, factor, bias) with y = (x - center) * factor + bias, (BC) each.

    tracked: the weight of the running statistics, which are None where it is 0 for all; at 1 they are taken as
    they are, whatever the set's own are.
    """
    if KIND == ROBUST:
        spread = power_of_range(spread, exponent)
    if running_center is not None:
        kept_center = tl.load(running_center + channel, mask=used, other=0.0).to(tl.float32)
        kept_spread = tl.load(running_spread + channel, mask=used, other=1.0).to(tl.float32)
        blended = tracked * kept_center + (1 - tracked) * center
        center = tl.where(tracked == 1, kept_center, tl.where(tracked == 0, center, blended))
        blended = tracked * kept_spread + (1 - tracked) * spread
        spread = tl.where(tracked == 1, kept_spread, tl.where(tracked == 0, spread, blended))
    if KIND == AUG:
        divisor = tl.sqrt(spread + eps)
    elif KIND == ROBUST:
        divisor = spread + eps
    else:
        divisor = power_of_range(spread, exponent) + eps
    factor = 1.0 / divisor
    if weight is not None:
        factor *= tl.load(weight + channel, mask=used, other=0.0).to(tl.float32)
    shift = tl.zeros_like(factor)
    if bias is not None:
        shift = tl.load(bias + channel, mask=used, other=0.0).to(tl.float32)
    return center, factor, shift
