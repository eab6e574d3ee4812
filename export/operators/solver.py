"""The solver of the generalized median in standard ONNX operators: the text of one Loop, for AugNorm's functions.

The bracket and the test for the end are those of augserve.norms.median.solve; what is in between has few
operations, since each is a node that takes time to load and to run. States are (G, B, 1), in units of the values;
z (N, B, L) are the values about their group's mean, and a group's sums are those of its rows' means. A group's
channel that has stopped is looked at again where it stopped, which gives the same bracket and the same estimate.

For phi < 2 the next estimate is by the secant through the two latest points, for which g alone has to be summed,
not the weights of Newton's slope: see docs/adr/0013-secants-in-files.md. The push past the root does not grow,
and it is the bracket's width that tells when to bisect, not passes without progress. A pass that hits a value,
0 / 0, tells nothing: the bracket stays, and the next pass looks a padding to the left. The first one looks beside
the mean, so that equal values are not hit.

The text uses what `body` and `statistics.VARIANCE` define, and defines center and spread.
"""

from __future__ import annotations

from augserve.export.operators.statistics import ABOUT_CENTER, VARIANCE, extremes
from augserve.norms.median.solve import INITIAL_BRACKET, MEAN_SQUARE

ROOT = 1.5  # the exponent whose weights are one over a root
SPARE = 3  # passes beyond those that halving alone would take
PADDING = 0.1  # of the tolerance: how far past the root a pass should look, for a bracket of both sides
NORMAL = 0.0456  # normal values have a slope of about (1 + NORMAL (1 - p)) count (std largest_d)^(p - 1) at 0
FAR = 1024.0  # std: the first secant goes through a made-up point so far off, which gives it that slope

_CONSTANTS = f"""
  rtol = Constant <value_float: float = @rtol> ()
  max_steps = Constant <value_int: int = @max_steps> ()
  tiny = Constant <value = float {{1e-30}}> ()
  half = Constant <value = float {{0.5}}> ()
  bound = Constant <value = float {{{INITIAL_BRACKET}}}> ()
  padding_of_tolerance = Constant <value = float {{{PADDING}}}> ()
  spare = Constant <value = float {{{2.0**SPARE}}}> ()
  twice_spare = Constant <value = float {{{2.0 * 2.0**SPARE}}}> ()
  far_in_std = Constant <value = float {{{FAR}}}> ()
  largest_d = Constant <value = float {{{MEAN_SQUARE**0.5}}}> ()
"""

_ONE_PHI = """
  phi = Constant <value_float: float = @phi> ()
  p = Sub (phi, one)
  p_less = Sub (p, one)
"""
_NORMAL_SLOPE = f"""
  to_p_less = Constant <value = float {{{NORMAL}}}> ()
  above_1 = Mul (to_p_less, p_less)
  normal = Sub (one, above_1)
"""
_NORMAL_SLOPE_OF_ROOT = f"  normal = Constant <value = float {{{1 + NORMAL * (2 - ROOT)}}}> ()\n"
_EACH_PHI = "  exponent_column = Unsqueeze (exponents, one_1)\n"
_BLOCK_OF_PHI = """
      phi = Slice (exponent_column, start, end)
      p = Sub (phi, one)
      p_less = Sub (p, one)
"""

# `room` halves with every pass, and a bracket that is wider is bisected. Halving alone takes 17.6 passes from the
# first bracket to the tolerance for phi < 2, and 27 where values reach 360 std; SPARE more are left for steps.
_SOLVER = """
      std = Sqrt (var)
      tolerance = Mul (rtol, std)
      padding = Mul (padding_of_tolerance, tolerance)
{bracket}
      at_end, lower_end, upper_end, estimate_end, room_end{last} = Loop (
          max_steps, going, padding, low, high, zeros, room_0{starts}) <
        body = one_pass (int64 taken, bool going_on, float[?, ?, ?] at, float[?, ?, ?] lower,
            float[?, ?, ?] upper, float[?, ?, ?] estimate, float[?, ?, ?] room{states})
          => (bool go_on, float[?, ?, ?] next_at, float[?, ?, ?] new_lower, float[?, ?, ?] new_upper,
            float[?, ?, ?] new_estimate, float[?, ?, ?] less_room{results})
        {{
          at_of_row = Gather <axis = 0> (at, group)
          d = Sub (at_of_row, z)
          a = Abs (d)
{evaluate}
          new_step = Div (g, slope)
          new_estimate = Sub (at, new_step)
          sign = Sign (g)
          push = Mul (sign, padding)
{ends}
          gap = Sub (new_upper, new_lower)
          still_running = Greater (gap, tolerance)
          pushed = Sub (new_estimate, push)
          above = Greater (pushed, new_lower)
          below = Less (pushed, new_upper)
          inside = And (above, below)
          less_room = Mean (room, zeros)
          narrow = Less (gap, less_room)
          by_step = And (inside, narrow)
          middle = Mean (new_lower, new_upper)
          next = Where (by_step, pushed, middle)
          next_at = Where (still_running, next, at)
{remember}
          busy = Cast <to = 1> (still_running)
          busiest = ReduceMax <keepdims = 0> (busy)
          go_on = Cast <to = 9> (busiest)
        }}>
      not_lower = Max (estimate_end, lower_end)
      root = Min (not_lower, upper_end)
      center = Add (mean, root)
"""

_BRACKET_BELOW_2 = """
      high = Mul (bound, std)
      low = Neg (high)
      room_0 = Mul (twice_spare, high)
"""
_BRACKET_ABOVE_2 = (
    extremes("z")
    + """
      gap_0 = Sub (high, low)
      room_0 = Mul (spare, gap_0)
"""
)

# The least slope of the residual, p count (std largest_d)^(p - 1), and with it the ends that a pass finds.
_LEAST = """
      farthest = Mul (std, largest_d)
{power}
      count_w = Mul (count, least_w)
      least = Mul ({p}, count_w)
      slope_0 = Mul (normal, count_w)
      far = Mul (far_in_std, std)
      move_0 = Add (far, tiny)
      fall = Mul (slope_0, move_0)
      g_0 = Neg (fall)
"""
_LEAST_POWER = """
      farthest_log = Log (farthest)
      least_log = Mul (farthest_log, p_less)
      least_w = Exp (least_log)
"""
_LEAST_ROOT = """
      farthest_root = Sqrt (farthest)
      least_w = Reciprocal (farthest_root)
"""
_ENDS_BELOW_2 = """
          distance = Div (g, least)
          reach = Add (distance, push)
          other_end = Sub (at, reach)
          left = Min (at, other_end)
          right = Max (at, other_end)
          left_end = Where (hit, lower, left)
          right_end = Where (hit, upper, right)
          new_lower = Max (lower, left_end)
          new_upper = Min (upper, right_end)
"""
_ENDS_ABOVE_2 = """
          not_above = LessOrEqual (g, zero)
          not_below = GreaterOrEqual (g, zero)
          new_lower = Where (not_above, at, lower)
          new_upper = Where (not_below, at, upper)
"""

_WEIGHTS = """
          a_log = Log ({a})
          w_log = Mul (a_log, p_less)
          w = Exp (w_log)
"""
_POWER = _WEIGHTS.format(a="a") + "          power = Mul (w, d)\n"
_POWER_OF_ROOT = """
          a_root = Sqrt (a)
          power = Div (d, a_root)
"""

_EVALUATE_BELOW_2 = """
{power}
          row_g = ReduceMean (power, two_1)
          g_terms = ReduceSum <noop_with_empty_axes = 1> (row_g, rows_axis)
          any_g = ScatterElements <axis = 0, reduction = "add"> (zeros, index, g_terms)
          hit = IsNaN (any_g)
          g = Where (hit, tiny, any_g)
          g_more = Sub (g, last_g)
          secant = Div (g_more, move)
          slope = Max (secant, least)
"""
# What a secant needs of the pass before: g, and the move from there to `at`.
_SECANT = {
    "starts": ", move_0, g_0",
    "states": ", float[?, ?, ?] move, float[?, ?, ?] last_g",
    "results": ", float[?, ?, ?] next_move, float[?, ?, ?] next_g",
    "last": ", move_end, g_end",
    "remember": """
          moved = Sub (next, at)
          next_move = Where (still_running, moved, move)
          next_g = Where (still_running, g, last_g)
""",
}


def _one_side(side: str, values: str, weights: str) -> str:
    """Return the text that sums what lies on one side of `at`: powers and weights."""
    return f"""
          {side}_w_all = Where ({weights})
          {side}_all = Where ({values})
          row_{side}_w = ReduceSum ({side}_w_all, two_1)
          row_{side} = ReduceSum ({side}_all, two_1)
          {side}_w_terms = ReduceSum <noop_with_empty_axes = 1> (row_{side}_w, rows_axis)
          {side}_terms = ReduceSum <noop_with_empty_axes = 1> (row_{side}, rows_axis)
          {side}_w = ScatterElements <axis = 0, reduction = "add"> (zeros, index, {side}_w_terms)
          {side}_sum = ScatterElements <axis = 0, reduction = "add"> (zeros, index, {side}_terms)
          {side} = Max ({side}_sum, tiny)
          {side}_log = Log ({side})
"""


def _root_of_side(side: str) -> str:
    return f"""
          {side}_below = Sub ({side}_log, larger_log)
          {side}_root_log = Div ({side}_below, p)
          {side}_root = Exp ({side}_root_log)
          {side}_ratio = Div ({side}_root, {side})
          {side}_slope = Mul ({side}_ratio, {side}_w)
"""


# Both roots are divided by the larger of them: for p near 0 they are powers that float32 does not hold.
_EVALUATE_ABOVE_2 = (
    """
          reach_low = Sub (at, low)
          reach_high = Sub (high, at)
          reach = Max (reach_low, reach_high, tiny)
          reach_of_row = Gather <axis = 0> (reach, group)
          a_share = Div (a, reach_of_row)
          a_safe = Max (a_share, tiny)
"""
    + _WEIGHTS.format(a="a_safe")
    + """
          powers = Mul (w, a_safe)
          is_left = Greater (d, zero)
"""
    + _one_side("left", "is_left, powers, zero", "is_left, w, zero")
    + _one_side("right", "is_left, zero, powers", "is_left, zero, w")
    + "          larger_log = Max (left_log, right_log)\n"
    + _root_of_side("left")
    + _root_of_side("right")
    + """
          h = Sub (left_root, right_root)
          slope = Add (left_slope, right_slope)
          g = Mul (h, reach)
"""
)


def below_2(root: bool = False) -> tuple[str, str]:
    """Return the texts of what is made once and of the statistics for 1 < phi < 2, from a bracket of one std.

    With `root` they are for phi = ROOT alone.
    """
    p, power, least = ("half", _POWER_OF_ROOT, _LEAST_ROOT) if root else ("p", _POWER, _LEAST_POWER)
    solver = _SOLVER.format(
        bracket=_BRACKET_BELOW_2 + _LEAST.format(power=least, p=p),
        evaluate=_EVALUATE_BELOW_2.format(power=power),
        ends=_ENDS_BELOW_2,
        **_SECANT,
    )
    once = _CONSTANTS + (_NORMAL_SLOPE_OF_ROOT if root else _ONE_PHI + _NORMAL_SLOPE)
    return once, VARIANCE + solver + ABOUT_CENTER


def above_2(each: bool = False) -> tuple[str, str]:
    """Return the texts for 2 < phi < inf: the function h of the two one-sided norms, the bracket [min, max].

    With `each`, phi is the function's input `exponents` (C), each in (1, inf): h has the same root for any phi.
    """
    solver = _SOLVER.format(
        bracket=_BRACKET_ABOVE_2,
        evaluate=_EVALUATE_ABOVE_2,
        ends=_ENDS_ABOVE_2,
        **dict.fromkeys(_SECANT, ""),
    )
    statistics = VARIANCE + (_BLOCK_OF_PHI if each else "") + solver + ABOUT_CENTER
    return _CONSTANTS + (_EACH_PHI if each else _ONE_PHI), statistics
