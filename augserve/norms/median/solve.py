"""The certified solver: a bracketed Newton iteration for many problems at once, one per row.

Each pass evaluates at y the residual g, whose sign moves one end of the bracket [lower, upper] to y, and Newton's
step. The next y is Newton's estimate, pushed past the root by a small padding so that the other end moves too;
the padding grows while the sign does not change. A row bisects when Newton leaves the bracket, when three passes
brought neither half a bracket nor a quarter of a step, or when only bisection can still meet max_steps. It stops
when upper - lower <= rtol * std: that bracket is the certificate. A row that has stopped is not touched again.

Work is done on z = (x - mean) / std, where the root lies in [-1, 1] for phi <= 2 because |mu - mean| <= std, and
in [min, max] for any phi. z comes from rows scaled by a power of two, so that no finite data overflow.

For phi <= 2: w = |d|^(phi-2), d = y - z, g = sum w d, step = g / ((phi - 1) sum w). For phi > 2, with p = phi - 1,
the same root is that of h(y) = (sum_{d>0} d^p)^(1/p) - (sum_{d<0} |d|^p)^(1/p), which is nearly linear far away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from augserve.norms.median.problem import closed_form
from augserve.norms.median.result import MedianResult, Status

# Constants of the iteration; augserve.export writes the same ones into files.
PADDING = 0.4  # of rtol, the first push past the root
PADDING_GROWTH = 4.0
STEP_RATIO = 0.25  # a step this much shorter than the last one is progress
PATIENCE = 3  # passes without progress before a bisection
INITIAL_BRACKET = 1.001  # of std, for phi <= 2; the excess covers rounding of mean and std


class Moments(NamedTuple):
    """By row, (R,): the mean and the biased variance."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class _State:
    """The iteration's state, each (R,), in units of z."""

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

    def rows(self, index: Tensor) -> _State:
        return _State(*(getattr(self, f.name)[index] for f in fields(self)))

    def put(self, index: Tensor, other: _State) -> None:
        for f in fields(self):
            getattr(self, f.name)[index] = getattr(other, f.name)


def solve(rows: Tensor, phi: float, rtol: float, max_steps: int) -> tuple[MedianResult, Moments]:
    """Find the GGM of every row.

    Args:
        rows: (R, m), m >= 1, float32 or float64.
        phi: the exponent in [1, inf], checked.
        rtol: width of the bracket at which a row stops, in units of its standard deviation.
        max_steps: passes over the data at most.

    Returns:
        The medians with their certificates, and the moments that were computed on the way.
    """
    low, high = rows.amin(dim=1), rows.amax(dim=1)  # several times faster than aminmax on a CPU
    scale = _power_of_two(torch.maximum(low.abs(), high.abs()))
    z = rows * scale[:, None]
    mean = z.mean(dim=1)
    var = (z - mean[:, None]).square_().mean(dim=1)  # several times faster than var_mean on a CPU
    moments = Moments(mean / scale, var / scale / scale)
    status = torch.where(torch.isfinite(var), Status.CONVERGED, Status.NOT_FINITE)
    no_steps = torch.zeros_like(status)
    exact = closed_form(z, phi)
    if exact is not None:
        exact = torch.minimum(torch.maximum(exact / scale, low), high)
        exact = torch.where(status == Status.NOT_FINITE, math.nan, exact)
        # Tensors of their own: autograd marks the ends, but not the value, as not differentiable.
        return MedianResult(exact, exact.clone(), exact.clone(), no_steps, status), moments

    std = torch.where(var > 0, var.sqrt(), 1.0)
    z.sub_(mean[:, None]).div_(std[:, None])
    extremes = (low * scale - mean) / std, (high * scale - mean) / std  # of z: all of it is monotone
    state = _iterate(z, *extremes, phi, rtol, max_steps)
    inside = (state.estimate > state.lower) & (state.estimate < state.upper)
    root = torch.where(inside, state.estimate, (state.lower + state.upper) / 2)
    value, lower, upper = (
        torch.minimum(torch.maximum((mean + std * end) / scale, low), high)
        for end in (root, state.lower, state.upper)
    )
    wide = ~(state.upper - state.lower <= rtol) & (status == Status.CONVERGED)
    status = torch.where(wide, Status.MAX_STEPS, status)
    return MedianResult(value, lower, upper, state.num_steps, status), moments


def _power_of_two(magnitude: Tensor) -> Tensor:
    """Return 2^-k with magnitude * 2^-k in [0.5, 1), by row; 1 where the magnitude is 0 or not finite."""
    usable = (magnitude > 0) & torch.isfinite(magnitude)
    limit = 120 if magnitude.dtype == torch.float32 else 1020
    exponent = torch.frexp(torch.where(usable, magnitude, 1.0)).exponent.clamp(-limit, limit)
    return torch.ldexp(torch.ones_like(magnitude), -exponent)


def _iterate(z: Tensor, low: Tensor, high: Tensor, phi: float, rtol: float, max_steps: int) -> _State:
    """Run the loop until every row has stopped; rows that have stopped leave the work."""
    state = _start(low, high, phi, rtol)
    index = torch.arange(len(z), device=z.device)
    active, current = z, state.rows(index)
    for taken in range(max_steps):
        running = current.upper - current.lower > rtol
        count = int(running.sum())
        if count == 0:
            break
        if count <= 0.75 * len(index):
            state.put(index, current)
            keep = running.nonzero()[:, 0]
            index, active, current = index[keep], active[keep], current.rows(keep)
            low, high, running = low[keep], high[keep], running[keep]
        g, step = _evaluate(active, current.y, phi, low, high)
        moved = _advance(current, g, step, rtol, passes_left=max_steps - taken - 1)
        current = _State(
            *(torch.where(running, getattr(moved, f.name), getattr(current, f.name)) for f in fields(moved))
        )
    state.put(index, current)
    return state


def _start(low: Tensor, high: Tensor, phi: float, rtol: float) -> _State:
    bound = INITIAL_BRACKET if phi <= 2 else math.inf
    lower, upper = low.clamp_min(-bound), high.clamp_max(bound)
    zero = torch.zeros_like(lower)
    return _State(
        y=zero.clone(),
        lower=lower,
        upper=upper,
        estimate=zero.clone(),
        sign=zero.clone(),
        padding=zero + PADDING * rtol,
        step=zero + math.inf,
        width=upper - lower,
        stalled=zero.clone(),
        num_steps=torch.zeros_like(lower, dtype=torch.int64),
    )


def _evaluate(z: Tensor, y: Tensor, phi: float, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """One pass over the data: a function with the sign of g(y), and Newton's step on it; (R,) each."""
    d = y[:, None] - z
    a = d.abs()
    p = phi - 1
    if phi <= 2:
        a.clamp_min_(1e-30)  # a value at y: its weight is finite, its part in g is 0
        w = a.rsqrt_() if phi == 1.5 else a.pow_(phi - 2)
        total = w.sum(dim=1)
        g = w.mul_(d).sum(dim=1)
        return g, g / (p * total)
    reach = torch.maximum(y - low, high - y)  # the largest |d|, so that no power overflows
    w = a.div_(reach[:, None]).pow(p - 1)
    powers = a.mul_(w)
    below = d > 0
    left, left_w = (powers * below).sum(dim=1), (w * below).sum(dim=1)
    right, right_w = powers.sum(dim=1) - left, w.sum(dim=1) - left_w
    tiny = torch.finfo(z.dtype).tiny
    left, right = left.clamp_min(tiny), right.clamp_min(tiny)
    h = left.pow(1 / p) - right.pow(1 / p)
    slope = left.pow(1 / p - 1) * left_w + right.pow(1 / p - 1) * right_w
    return h, h * reach / slope


def _advance(state: _State, g: Tensor, step: Tensor, rtol: float, passes_left: int) -> _State:
    """The state after one pass that found g and Newton's step at state.y."""
    lower = torch.where(g <= 0, state.y, state.lower)
    upper = torch.where(g >= 0, state.y, state.upper)
    sign = torch.sign(g)
    padding = torch.where(sign == state.sign, state.padding * PADDING_GROWTH, PADDING * rtol)
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
