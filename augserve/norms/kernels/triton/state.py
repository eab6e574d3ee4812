"""What passes over a large set leave in memory for the next one: partial sums of the splits, and the state.

Every program of a set adds up the partial sums by itself, in the same order and in float64, and advances the state
by itself: one launch is a pass, and no program waits for another. Only the first split writes the state, into
another buffer than the one that is read. Buffers are float32: state (19, sets), of which 12 are the solver's, 6 the
moments and the last says that a set has to start again; partial sums (6, sets, splits); seeds (3, sets): pivot,
inverse scale and first point of the sample. A set is group * channels + channel.
"""

from __future__ import annotations

from augserve.norms.kernels.triton.api import jit, tl
from augserve.norms.kernels.triton.moments import frame_of, from_sums
from augserve.norms.kernels.triton.newton import ANY, MEAN, advance, initial_state, least_slope, power, residual

STATE_FIELDS = 19
PARTIAL_FIELDS = 6


@jit
def choose(mask, one, other):  # type: ignore[no-untyped-def]
    """Return the state `one` where the mask holds, else `other`."""
    return (
        tl.where(mask, one[0], other[0]), tl.where(mask, one[1], other[1]), tl.where(mask, one[2], other[2]),
        tl.where(mask, one[3], other[3]), tl.where(mask, one[4], other[4]), tl.where(mask, one[5], other[5]),
        tl.where(mask, one[6], other[6]), tl.where(mask, one[7], other[7]), tl.where(mask, one[8], other[8]),
        tl.where(mask, one[9], other[9]), tl.where(mask, one[10], other[10]), tl.where(mask, one[11], other[11]),
    )  # fmt: skip


@jit
def choose_moments(mask, one, other):  # type: ignore[no-untyped-def]
    """Return the moments `one` where the mask holds, else `other`."""
    return (
        tl.where(mask, one[0], other[0]), tl.where(mask, one[1], other[1]), tl.where(mask, one[2], other[2]),
        tl.where(mask, one[3], other[3]), tl.where(mask, one[4], other[4]), tl.where(mask, one[5], other[5]),
    )  # fmt: skip


@jit
def write_part(partial, field: tl.constexpr, value, sets, splits, at, split, used):  # type: ignore[no-untyped-def]
    """Write one field of a split's sums (BC)."""
    tl.store(partial + (sets * field + at) * splits + split, value, mask=used)


@jit
def _parts(partial, field: tl.constexpr, sets, splits, at, used, count, empty, SP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return a field of all splits, (SP, BC) float64, with `empty` where there is none."""
    split = tl.arange(0, SP)
    offsets = ((sets * field + at) * splits)[None, :] + split[:, None]
    mask = (split < count)[:, None] & used[None, :]
    return tl.load(partial + offsets, mask=mask, other=empty).to(tl.float64)


@jit
def summed(partial, field: tl.constexpr, sets, splits, at, used, count, SP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the sum over the splits of one field, (BC) float64."""
    return tl.sum(_parts(partial, field, sets, splits, at, used, count, 0.0, SP), 0)


@jit
def least(partial, field: tl.constexpr, sets, splits, at, used, count, SP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the smallest over the splits of one field, (BC) float32."""
    return tl.min(_parts(partial, field, sets, splits, at, used, count, float("inf"), SP), 0).to(tl.float32)


@jit
def most(partial, field: tl.constexpr, sets, splits, at, used, count, SP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the largest over the splits of one field, (BC) float32."""
    return tl.max(_parts(partial, field, sets, splits, at, used, count, -float("inf"), SP), 0).to(tl.float32)


@jit
def _field(memory, field: tl.constexpr, sets, at, used):  # type: ignore[no-untyped-def]
    return tl.load(memory + sets * field + at, mask=used, other=0.0)


@jit
def after_moments(  # type: ignore[no-untyped-def]
    partial, seeds, sets, splits, at, used, count, phi, values, rtol, max_steps, PHI: tl.constexpr, SP: tl.constexpr
):
    """Return (state, moments, again) after the pass that gave the moments and, for phi < 2, one Newton step."""
    first_sum = summed(partial, 0, sets, splits, at, used, count, SP)
    second_sum = summed(partial, 1, sets, splits, at, used, count, SP)
    low = least(partial, 2, sets, splits, at, used, count, SP)
    high = most(partial, 3, sets, splits, at, used, count, SP)
    pivot = _field(seeds, 0, sets, at, used)
    inverse = tl.where(used, _field(seeds, 1, sets, at, used), 1.0)
    y = _field(seeds, 2, sets, at, used)
    moments, again = from_sums(first_sum, second_sum, low, high, pivot, values)
    frame, offset, low, high = frame_of(moments)
    # The sampled point in units of this set; of a set that starts again it means nothing.
    point = (pivot.to(tl.float64) - moments[1] + y.to(tl.float64) / inverse) * frame[2]
    point = point.to(tl.float32)
    state = initial_state(low, high, offset, phi, point, rtol)
    if (PHI != MEAN) & (PHI != ANY):
        total = summed(partial, 4, sets, splits, at, used, count, SP).to(tl.float32)
        g = summed(partial, 5, sets, splits, at, used, count, SP).to(tl.float32)
        unit = (frame[2] / inverse).to(tl.float32)
        step = g / ((phi - 1) * tl.where(total > 0, total, 1.0)) * unit
        moved = advance(state, g * power(unit, phi - 1), step, least_slope(phi, values), rtol, max_steps)
        state = choose(state[0] == point, moved, state)
    halted = tl.where(again > 0, state[1], state[2])  # a bracket of width 0: passes leave it alone
    y, lower, _, estimate, sign, padding, step, width, stalled, steps, low, high = state
    state = (y, lower, halted, estimate, sign, padding, step, width, stalled, steps, low, high)
    return state, moments, again


@jit
def after_pass(  # type: ignore[no-untyped-def]
    memory, partial, sets, splits, at, used, count, phi, values, rtol, max_steps,
    PHI: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """Return (state, moments, again) after a pass of the solver: what was in memory, moved by the pass's sums."""
    state, moments, again = read_state(memory, sets, at, used)
    sums = (
        summed(partial, 0, sets, splits, at, used, count, SP).to(tl.float32),
        summed(partial, 1, sets, splits, at, used, count, SP).to(tl.float32),
        summed(partial, 2, sets, splits, at, used, count, SP).to(tl.float32),
        summed(partial, 3, sets, splits, at, used, count, SP).to(tl.float32),
    )
    g, step = residual(sums, state, phi, PHI)
    return advance(state, g, step, least_slope(phi, values), rtol, max_steps), moments, again


@jit
def read_state(memory, sets, at, used):  # type: ignore[no-untyped-def]
    """Return (state, moments, again)."""
    state = (
        _field(memory, 0, sets, at, used), _field(memory, 1, sets, at, used), _field(memory, 2, sets, at, used),
        _field(memory, 3, sets, at, used), _field(memory, 4, sets, at, used), _field(memory, 5, sets, at, used),
        _field(memory, 6, sets, at, used), _field(memory, 7, sets, at, used), _field(memory, 8, sets, at, used),
        _field(memory, 9, sets, at, used), _field(memory, 10, sets, at, used), _field(memory, 11, sets, at, used),
    )  # fmt: skip
    moments = (
        tl.where(used, _field(memory, 12, sets, at, used), 1.0), _field(memory, 13, sets, at, used),
        _field(memory, 14, sets, at, used), _field(memory, 15, sets, at, used),
        _field(memory, 16, sets, at, used), _field(memory, 17, sets, at, used),
    )  # fmt: skip
    return state, moments, _field(memory, 18, sets, at, used)


@jit
def write_state(memory, sets, at, used, state, moments, again):  # type: ignore[no-untyped-def]
    """Write (state, moments, again)."""
    for field in tl.static_range(12):
        tl.store(memory + sets * field + at, state[field], mask=used)
    for field in tl.static_range(6):
        tl.store(memory + sets * (12 + field) + at, moments[field], mask=used)
    tl.store(memory + 18 * sets + at, again, mask=used)
