"""One pass of the certified solver, written for a program: the sums, Newton's step, and the move of the bracket.

The iteration is that of `augserve.norms.median.solve`, whose docstring explains it, with its constants and in its
units z = (x - mean) / std. A state is the tuple (y, lower, upper, estimate, sign, padding, step, width, stalled,
steps, low, high), a frame is (scale, shift, inverse_std) with z = (x * scale - shift) * inverse_std; every part
has the shape (BC), float32.
"""

from __future__ import annotations

from augserve.norms.kernels.triton.api import constant, jit, tl
from augserve.norms.kernels.triton.tiles import fetch
from augserve.norms.median import solve

# Classes of exponents: each is compiled by itself.
MEAN = constant(0)  # phi = 2, or no median at all
ROOT = constant(1)  # phi = 1.5: one reciprocal square root for a value
UP_TO_2 = constant(2)
ANY = constant(3)  # phi > 2, or one for each channel

PADDING = constant(solve.PADDING)
PADDING_GROWTH = constant(solve.PADDING_GROWTH)
NEAR_RATIO = constant(solve.NEAR_RATIO)
STEP_RATIO = constant(solve.STEP_RATIO)
PATIENCE = constant(float(solve.PATIENCE))
INITIAL_BRACKET = constant(solve.INITIAL_BRACKET)
MEAN_SQUARE = constant(solve.MEAN_SQUARE)
NEAREST = constant(1e-30)  # distance that a value at y is taken to have
TINY = constant(1.1754943508222875e-38)
LARGEST = constant(3.4028234663852886e38)


@jit
def power(a, p):  # type: ignore[no-untyped-def]
    """Return a^p for a > 0."""
    return tl.exp2(p * tl.log2(a))


@jit
def is_finite(v):  # type: ignore[no-untyped-def]
    """Return whether v is neither NaN nor infinite."""
    return tl.abs(v) <= LARGEST


@jit
def weight_of(distance, phi, PHI: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return |d|^(phi - 2) for phi <= 2; finite for a value at y, whose part in the residual is 0."""
    a = tl.maximum(tl.abs(distance), NEAREST)
    return tl.rsqrt(a) if PHI == ROOT else power(a, phi - 2)


@jit
def reach_of(state):  # type: ignore[no-untyped-def]
    """Return the largest |y - z|, 1 where that is 0."""
    reach = tl.maximum(state[0] - state[10], state[11] - state[0])
    return tl.where(reach > 0, reach, 1.0)


@jit
def pass_sums(  # type: ignore[no-untyped-def]
    where, kept, state, frame, phi, first, last, stride,
    PHI: tl.constexpr, RESIDENT: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Return four sums for `residual`, (BC) each, over the tiles first, first + stride, ... below last."""
    scale, shift, inverse_std = frame
    inverse = 1.0 / reach_of(state)
    p = phi - 1
    total = tl.zeros((BN * BL, BC), tl.float32)
    g = tl.zeros((BN * BL, BC), tl.float32)
    right = tl.zeros((BN * BL, BC), tl.float32)
    right_w = tl.zeros((BN * BL, BC), tl.float32)
    for t in range(first, last, stride):
        x, inside = fetch(where, kept, t, RESIDENT, BN, BL)
        d = state[0][None, :] - (x * scale[None, :] - shift[None, :]) * inverse_std[None, :]
        if PHI == ANY:
            a = tl.maximum(tl.abs(d) * inverse[None, :], NEAREST)
            w = tl.where(inside, power(a, p[None, :] - 1), 0.0)
            total += tl.where(d > 0, w, 0.0)
            right_w += tl.where(d > 0, 0.0, w)
            g += tl.where(d > 0, a * w, 0.0)
            right += tl.where(d < 0, a * w, 0.0)
        else:
            w = tl.where(inside, weight_of(d, phi[None, :], PHI), 0.0)
            total += w
            g += w * d
    if PHI == ANY:
        sums = (tl.sum(total, 0), tl.sum(g, 0), tl.sum(right, 0), tl.sum(right_w, 0))
    else:
        zero = tl.zeros((BC,), tl.float32)
        sums = (tl.sum(total, 0), tl.sum(g, 0), zero, zero)
    return sums


@jit
def residual(sums, state, phi, PHI: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return (g, step): the residual at y, for phi > 2 a number of its sign, and Newton's step."""
    p = phi - 1
    if PHI == ANY:
        left_w, left, right, right_w = sums
        reach = reach_of(state)
        left_p = tl.maximum(left, TINY)
        right_p = tl.maximum(right, TINY)
        h = power(left_p, 1 / p) - power(right_p, 1 / p)
        slope = power(left_p, 1 / p - 1) * left_w + power(right_p, 1 / p - 1) * right_w
        flat = p <= 1
        difference = left - right
        g = tl.where(flat, difference * power(reach, p), h)
        step = tl.where(flat, difference / (p * (left_w + right_w)), h / slope) * reach
    else:
        g = sums[1]
        step = g / (p * sums[0])
    return g, step


@jit
def least_slope(phi, values):  # type: ignore[no-untyped-def]
    """Return the least slope of the residual in the first bracket, 0 where it is unknown, for phi > 2."""
    return tl.where(phi <= 2, (phi - 1) * values * power(tl.zeros_like(phi) + MEAN_SQUARE, phi / 2 - 1), 0.0)


@jit
def initial_state(low, high, offset, phi, start, rtol):  # type: ignore[no-untyped-def]
    """Return the state before the first pass.

    low, high: extremes of z; offset: the mean of z, which rounding of the shift leaves; start: where to begin, in
    z, instead of the mean; ignored outside the first bracket.
    """
    bound = tl.where(phi <= 2, INITIAL_BRACKET, float("inf"))
    lower = tl.maximum(low, offset - bound)
    upper = tl.minimum(high, offset + bound)
    y = tl.where((start > lower) & (start < upper), start, offset)
    zero = tl.zeros_like(y)
    return (
        y,
        lower,
        upper,
        y,
        zero,
        zero + rtol * PADDING,
        zero + float("inf"),
        upper - lower,
        zero,
        zero,
        low,
        high,
    )


@jit
def is_running(state, rtol, max_steps):  # type: ignore[no-untyped-def]
    """Return which channels still need a pass, (BC) bool."""
    return (state[2] - state[1] > rtol) & (state[9] < max_steps)


@jit
def advance(state, g, step, least, rtol, max_steps):  # type: ignore[no-untyped-def]
    """Return the state after a pass that found g and Newton's step at y; channels that have stopped stay.

    least: the least slope of g, 0 where it is unknown.
    """
    y, lower, upper, estimate, sign, padding, last_step, last_width, stalled, steps, low, high = state
    moves = is_running(state, rtol, max_steps)
    new_sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0))
    distance = tl.where(least > 0, tl.abs(g) / tl.where(least > 0, least, 1.0), float("inf")) + rtol * PADDING
    new_lower = tl.where(g <= 0, y, tl.maximum(lower, y - distance))
    new_upper = tl.where(g >= 0, y, tl.minimum(upper, y + distance))
    kept = tl.where(tl.abs(step) <= last_step * NEAR_RATIO, padding, padding * PADDING_GROWTH)
    new_padding = tl.where(new_sign == sign, kept, rtol * PADDING)
    width = new_upper - new_lower
    halved = width <= 0.5 * last_width
    progress = halved | (tl.abs(step) <= last_step * STEP_RATIO)
    waited = tl.where(progress, 0.0, stalled + 1)
    new_estimate = y - step
    pushed = new_estimate - new_sign * new_padding
    last_call = tl.log2(tl.maximum(width / rtol, TINY)) + steps + 2 >= max_steps
    newton = (pushed > new_lower) & (pushed < new_upper) & (waited < PATIENCE) & (last_call == 0)
    return (
        tl.where(moves, tl.where(newton, pushed, (new_lower + new_upper) / 2), y),
        tl.where(moves, new_lower, lower),
        tl.where(moves, new_upper, upper),
        tl.where(moves, new_estimate, estimate),
        tl.where(moves, new_sign, sign),
        tl.where(moves, new_padding, padding),
        tl.where(moves, tl.abs(step), last_step),
        tl.where(moves & halved, width, last_width),
        tl.where(moves, tl.where(newton, waited, 0.0), stalled),
        tl.where(moves, steps + 1, steps),
        low,
        high,
    )


@jit
def iterate(  # type: ignore[no-untyped-def]
    where, kept, state, frame, phi, first, last, stride, values, rtol, max_steps,
    PHI: tl.constexpr, RESIDENT: tl.constexpr, BN: tl.constexpr, BL: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Return the state once every channel of this program has stopped."""
    running = tl.max(is_running(state, rtol, max_steps).to(tl.int32), 0)
    while running > 0:
        sums = pass_sums(where, kept, state, frame, phi, first, last, stride, PHI, RESIDENT, BN, BL, BC)
        g, step = residual(sums, state, phi, PHI)
        state = advance(state, g, step, least_slope(phi, values), rtol, max_steps)
        running = tl.max(is_running(state, rtol, max_steps).to(tl.int32), 0)
    return state
