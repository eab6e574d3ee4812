"""The certified solver: a bracketed Newton iteration for many sets of values at once.

Each pass evaluates at y the residual g, whose sign moves one end of the bracket [lower, upper] to y, and Newton's
step. For phi <= 2 the size of g moves the other end: its slope is at least `least_slope` wherever the root can be,
so that the root is no farther from y than |g| / least_slope. The next y is Newton's estimate, pushed past the
root by a small padding, since rounding must not tell on which side y lies; the padding grows while the sign does
not change. A set bisects when Newton leaves the bracket, when three passes brought neither half a bracket nor a
quarter of a step, or when only bisection can still meet max_steps. It stops when upper - lower <= rtol * std:
that bracket is the certificate. A set that has stopped is not touched again.

Work is done on z = (x - mean) / std, where the root lies in [-1, 1] for phi <= 2 because |mu - mean| <= std, and
in [min, max] for any phi. z comes from values scaled by a power of two, so that no finite data overflow.

For phi <= 2: w = |d|^(phi-2), d = y - z, g = sum w d, step = g / ((phi - 1) sum w). That slope is least where all
|d| are alike (Jensen's inequality, w being convex in d^2): the mean of d^2 is 1 + y^2. For phi > 2 and p = phi - 1,
the same root is that of h(y) = (sum_{d>0} d^p)^(1/p) - (sum_{d<0} |d|^p)^(1/p), which is nearly linear far away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from augserve.errors import ConfigurationError
from augserve.norms.median.problem import largest_phi
from augserve.norms.median.result import MedianResult, Status
from augserve.norms.median.values import Values

# Constants of the iteration; augserve.export writes the same ones into files.
PADDING = 0.2  # of rtol, the first push past the root, and what rounding of |g| / least_slope is allowed
PADDING_GROWTH = 4.0  # where the sign stays and Newton is not near
NEAR_RATIO = 1 / 16  # a step this much shorter than the last one: its estimate is as good as the root
STEP_RATIO = 0.25  # a step this much shorter than the last one is progress
PATIENCE = 3  # passes without progress before a bisection
OUT_OF_RANGE = "every phi must lie in [1, inf]: 1 median, 2 mean, inf midrange; got another"
INITIAL_BRACKET = 1.001  # of std, for phi <= 2; the excess covers rounding of mean and std
MEAN_SQUARE = 1 + INITIAL_BRACKET**2  # the largest mean of d^2 within that bracket


class Moments(NamedTuple):
    """By set: the mean and the biased variance."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class _State:
    """The iteration's state in units of z, and what stays as it is; every field has the shape of a statistic."""

    y: Tensor
    lower: Tensor
    upper: Tensor
    estimate: Tensor
    sign: Tensor
    padding: Tensor
    step: Tensor
    width: Tensor  # of the bracket when it last halved
    stalled: Tensor  # passes since the last progress
    num_steps: Tensor
    least_slope: Tensor  # of g, for phi <= 2; 0: unknown
    low: Tensor  # the smallest z
    high: Tensor  # the largest z
    phi: Tensor  # where the sets have exponents of their own, else anything

    def rows(self, index: Tensor) -> _State:
        return _State(*(getattr(self, f.name)[index] for f in fields(self)))

    def put(self, index: Tensor, other: _State) -> None:
        for f in fields(self):
            getattr(self, f.name)[index] = getattr(other, f.name)

    def where(self, chosen: Tensor, other: _State) -> _State:
        return _State(*(torch.where(chosen, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


def solve(
    values: Values,
    phi: float | Tensor,
    rtol: float,
    max_steps: int,
    *,
    start: Tensor | None = None,
    interior: bool = False,
) -> tuple[MedianResult, Moments]:
    """Find the GGM of every set.

    Args:
        values: float32 or float64.
        phi: the exponent in [1, inf], checked; or one for each set, of the shape of a statistic.
        rtol: width of the bracket at which a set stops, in units of its standard deviation.
        max_steps: passes over the data at most.
        start: where to begin, by set, instead of the mean; ignored where it lies outside the first bracket. It
            changes the number of passes, not the certificate.
        interior: every exponent is known to lie in (1, inf), so that nothing needs to look.

    Returns:
        The medians with their certificates, and the moments that were computed on the way.

    Raises:
        ConfigurationError: an exponent of a set outside [1, inf].
    """
    count = values.count()
    low, high = values.extremes()
    if isinstance(count, Tensor):  # only then may a set be empty
        low, high = (end.masked_fill(low > high, 0.0) for end in (low, high))
    scale = _power_of_two(torch.maximum(low.abs(), high.abs()))
    z = values.map(lambda x, scale: x * scale, scale)
    mean = z.sums(lambda z: [z])[0] / count
    shift, square = z.sums(_deviations, mean)
    mean = mean + shift / count  # what rounding of the first sum left out
    var = (square / count - (shift / count).square()).clamp_min(0)
    moments = Moments(mean / scale, var / scale / scale)
    wrong = ~torch.isfinite(var)
    if isinstance(phi, Tensor):
        wrong = wrong | torch.isnan(phi)
    status = torch.where(wrong, Status.NOT_FINITE, Status.CONVERGED)

    def original(z: Tensor) -> Tensor:
        """In units of the data, within their extremes."""
        return torch.minimum(torch.maximum(z / scale, low), high)

    known, exact = _closed_form(z, phi, count, mean, (low * scale, high * scale), interior)
    if known is True:
        exact = original(exact).masked_fill(wrong, math.nan)
        # Tensors of their own: autograd marks the ends, but not the value, as not differentiable.
        return MedianResult(exact, exact.clone(), exact.clone(), torch.zeros_like(status), status), moments

    std = torch.where(var > 0, var.sqrt(), 1.0)
    z = z.map(lambda z, mean, std: z.sub_(mean).div_(std), mean, std)
    extremes = (low * scale - mean) / std, (high * scale - mean) / std  # of z: all of it is monotone
    if isinstance(phi, Tensor) and isinstance(known, Tensor):
        phi = torch.where(known, 2.0, phi)  # these sets have their answer: let them stop soon
    first = None if start is None else (start * scale - mean) / std
    state = _iterate(z, _start(*extremes, phi, rtol, first, count), phi, rtol, max_steps)
    inside = (state.estimate > state.lower) & (state.estimate < state.upper)
    root = torch.where(inside, state.estimate, (state.lower + state.upper) / 2)
    wide = ~(state.upper - state.lower <= rtol) & ~wrong
    ends = [original(mean + std * end) for end in (root, state.lower, state.upper)]
    num_steps = state.num_steps
    if known is not False:
        ends = [torch.where(known, original(exact), end) for end in ends]
        num_steps, wide = num_steps.masked_fill(known, 0), wide & ~known
    value, lower, upper = (end.masked_fill(wrong, math.nan) for end in ends)
    status = torch.where(wide, Status.MAX_STEPS, status)
    return MedianResult(value, lower, upper, num_steps, status), moments


def _deviations(z: Tensor, mean: Tensor) -> Iterator[Tensor]:
    d = z - mean
    yield d
    yield d.square_()


def _closed_form(
    z: Values,
    phi: float | Tensor,
    count: int | Tensor,
    mean: Tensor,
    extremes: tuple[Tensor, Tensor],
    interior: bool,
) -> tuple[bool | Tensor, Tensor]:
    """Return for which sets the answer is exact (all, none, or a mask), and that answer.

    phi = 1, 2 and inf have closed forms. Up to two values every phi has the same answer, their midpoint (for
    phi = 1 by convention).
    """
    middle = extremes[0] / 2 + extremes[1] / 2
    few = count <= 2
    largest = largest_phi(mean.dtype)
    if isinstance(phi, Tensor) and interior:
        return torch.as_tensor(few, device=phi.device), middle
    if isinstance(phi, Tensor):
        if not bool((phi >= 1).all()):
            raise ConfigurationError(OUT_OF_RANGE)
        exact = torch.where(phi == 2, mean, middle)
        if bool((phi == 1).any()):
            exact = torch.where((phi == 1) & ~torch.as_tensor(few), z.median(), exact)
        return (phi == 1) | (phi == 2) | (phi > largest) | torch.as_tensor(few, device=phi.device), exact
    if few is True or phi > largest:
        return True, middle
    if phi == 2:
        return True, mean
    if phi == 1:
        return True, z.median()
    return few, middle


def _power_of_two(magnitude: Tensor) -> Tensor:
    """Return 2^-k with magnitude * 2^-k in [0.5, 1), by row; 1 where the magnitude is 0 or not finite."""
    usable = (magnitude > 0) & torch.isfinite(magnitude)
    limit = 120 if magnitude.dtype == torch.float32 else 1020
    exponent = torch.frexp(torch.where(usable, magnitude, 1.0)).exponent.clamp(-limit, limit)
    return torch.ldexp(torch.ones_like(magnitude), -exponent)


def _iterate(z: Values, start: _State, phi: float | Tensor, rtol: float, max_steps: int) -> _State:
    """Run the loop until every set has stopped; rows that have stopped leave the work."""
    evaluate = _evaluate_above_2 if isinstance(phi, Tensor) or phi > 2 else _evaluate_up_to_2
    state, index, current = start, None, start
    for taken in range(max_steps):
        running = current.upper - current.lower > rtol
        if z.can_wait():
            count = int(running.sum())
            if count == 0:
                break
            if count <= 0.75 * running.numel() and (fewer := z.select(running.nonzero()[:, 0])) is not None:
                keep = running.nonzero()[:, 0]
                if index is None:
                    state, index = current, keep
                else:
                    state.put(index, current)
                    index = index[keep]
                z, current, running = fewer, current.rows(keep), running[keep]
        g, step = evaluate(z, current, phi)
        moved = _advance(current, g, step, rtol, passes_left=max_steps - taken - 1)
        current = moved.where(running, current)
    if index is None:
        return current
    state.put(index, current)
    return state


def _start(
    low: Tensor, high: Tensor, phi: float | Tensor, rtol: float, start: Tensor | None, count: int | Tensor
) -> _State:
    exponent = phi.expand_as(low).clone() if isinstance(phi, Tensor) else torch.full_like(low, phi)
    bound = torch.where(exponent <= 2, INITIAL_BRACKET, math.inf).to(low.dtype)
    slope = (exponent - 1) * count * MEAN_SQUARE ** (exponent / 2 - 1)
    lower, upper = torch.maximum(low, -bound), torch.minimum(high, bound)
    zero = torch.zeros_like(lower)
    y = zero if start is None else torch.where((start > lower) & (start < upper), start, zero)
    return _State(
        y=y.clone(),
        lower=lower,
        upper=upper,
        estimate=y.clone(),
        sign=zero.clone(),
        padding=zero + PADDING * rtol,
        step=zero + math.inf,
        width=upper - lower,
        stalled=zero.clone(),
        num_steps=torch.zeros_like(lower, dtype=torch.int64),
        least_slope=torch.where(exponent <= 2, slope, 0.0).to(low.dtype),
        low=low,
        high=high,
        phi=exponent,
    )


def _evaluate_up_to_2(z: Values, at: _State, phi: float | Tensor) -> tuple[Tensor, Tensor]:
    """One pass over the data, two sums: the residual g(y) and Newton's step on it, for one phi <= 2."""

    def terms(z: Tensor, y: Tensor) -> Iterator[Tensor]:
        d = y - z
        a = d.abs().clamp_min_(1e-30)  # a value at y: its weight is finite, its part in g is 0
        w = a.rsqrt_() if phi == 1.5 else a.pow_(phi - 2)
        yield w
        yield w.mul_(d)

    total, g = z.sums(terms, at.y)
    return g, g / ((phi - 1) * total)


def _evaluate_above_2(z: Values, at: _State, phi: float | Tensor) -> tuple[Tensor, Tensor]:
    """One pass over the data, four sums: g(y), for phi > 2 a function of its sign, and Newton's step on it."""
    reach = torch.maximum(at.y - at.low, at.high - at.y)  # the largest |d|, so that no power overflows
    reach = torch.where(reach > 0, reach, 1.0)
    p = at.phi - 1 if isinstance(phi, Tensor) else torch.full_like(reach, phi - 1)

    def terms(z: Tensor, y: Tensor, reach: Tensor, p: Tensor) -> Iterator[Tensor]:
        d = y - z
        a = d.abs().div_(reach).clamp_min_(1e-30)
        w = a.pow(p - 1)
        powers = a.mul_(w)
        left = d > 0
        yield powers * left
        yield powers.mul_(d < 0)
        yield w * left
        yield w.masked_fill_(left, 0)

    left, right, left_w, right_w = z.sums(terms, at.y, reach, p)
    tiny = torch.finfo(reach.dtype).tiny
    left_p, right_p = left.clamp_min(tiny), right.clamp_min(tiny)
    h = left_p.pow(1 / p) - right_p.pow(1 / p)
    slope = left_p.pow(1 / p - 1) * left_w + right_p.pow(1 / p - 1) * right_w
    step = h * reach / slope
    if not isinstance(phi, Tensor):
        return h, step
    g = left - right
    flat = p <= 1
    step = torch.where(flat, g * reach / (p * (left_w + right_w)), step)
    return torch.where(flat, g * reach**p, h), step


def _advance(state: _State, g: Tensor, step: Tensor, rtol: float, passes_left: int) -> _State:
    """The state after one pass that found g and Newton's step at state.y."""
    sign = torch.sign(g)
    beyond = state.y - sign * (g.abs() / state.least_slope + PADDING * rtol)  # the root is on this side of it
    lower = torch.where(g <= 0, state.y, torch.maximum(state.lower, beyond))
    upper = torch.where(g >= 0, state.y, torch.minimum(state.upper, beyond))
    near = step.abs() <= NEAR_RATIO * state.step
    kept = torch.where(near, state.padding, state.padding * PADDING_GROWTH)
    padding = torch.where(sign == state.sign, kept, PADDING * rtol)
    width = upper - lower
    halved = width <= 0.5 * state.width
    progress = halved | (step.abs() <= STEP_RATIO * state.step)
    stalled = torch.where(progress, 0.0, state.stalled + 1)
    estimate = state.y - step
    pushed = estimate - sign * padding
    last_call = torch.log2(width / rtol) >= passes_left - 1
    newton = (pushed > lower) & (pushed < upper) & (stalled < PATIENCE) & ~last_call
    return replace(
        state,
        y=torch.where(newton, pushed, (lower + upper) / 2),
        lower=lower,
        upper=upper,
        estimate=estimate,
        sign=sign,
        padding=padding,
        step=step.abs(),
        width=torch.where(halved, width, state.width),
        stalled=torch.where(newton, stalled, 0.0),
        num_steps=state.num_steps + 1,
    )
