"""The solver of the generalized median in standard ONNX operators: the text of one Loop, for AugNorm's functions.

The iteration is that of augserve.norms.median.solve, with the same constants and the same test for the end; here
every state is (N, C), equal on all rows of a group, and a row that has stopped is not touched again. Rows with
lambda = 1 need no statistics of their own and begin as stopped.

The text uses what the function's head defines (zero, one, two, zeros, axis_2, index, group, rows_channels, mean,
var, deviation, tracked; above phi = 2 also low and high) and defines group_center.
"""

from __future__ import annotations

from augserve.norms.median.solve import INITIAL_BRACKET, NEAR_RATIO, PADDING, PADDING_GROWTH, PATIENCE, STEP_RATIO

_SOLVER = """
{phi}
  rtol = Constant <value_float: float = @rtol> ()
  max_steps_int = Constant <value_int: int = @max_steps> ()
  max_steps = Cast <to = 1> (max_steps_int)
  p = Sub (phi, one)
  p_less = Sub (p, one)
{along_positions}
  tiny = Constant <value = float {{1e-30}}> ()
  half = Constant <value = float {{0.5}}> ()
  first_padding = Constant <value = float {{{padding}}}> ()
  growth = Constant <value = float {{{growth}}}> ()
  near_ratio = Constant <value = float {{{near_ratio}}}> ()
  step_ratio = Constant <value = float {{{step_ratio}}}> ()
  patience = Constant <value = float {{{patience}}}> ()
  padding_0 = Mul (first_padding, rtol)
  log_2 = Log (two)
  root_var = Sqrt (var)
  spread_out = Greater (var, zero)
  std = Where (spread_out, root_var, one)
  std_3 = Unsqueeze (std, axis_2)
  z = Div (deviation, std_3)
{bracket}
  wanted = Not (tracked)
  solvable = And (wanted, spread_out)
  lower_0 = Where (solvable, bracket_low, zeros)
  upper_0 = Where (solvable, bracket_high, zeros)
  width_0 = Sub (upper_0, lower_0)
  step_0 = ConstantOfShape <value = float[1] {{1e30}}> (rows_channels)
  padding_rows = Add (zeros, padding_0)
  any_width = ReduceMax <keepdims = 0> (width_0)
  start_running = Greater (any_width, rtol)
  y_end, lower_end, upper_end, estimate_end, sign_end, padding_end, step_end, width_end, stalled_end = Loop (
      max_steps_int, start_running, zeros, lower_0, upper_0, zeros, zeros, padding_rows, step_0, width_0, zeros) <
    body = one_pass (int64 taken_int, bool going, float[?, ?] at, float[?, ?] lower, float[?, ?] upper,
        float[?, ?] estimate, float[?, ?] sign, float[?, ?] padding, float[?, ?] step, float[?, ?] width,
        float[?, ?] stalled)
      => (bool go_on, float[?, ?] at_out, float[?, ?] lower_out, float[?, ?] upper_out,
        float[?, ?] estimate_out, float[?, ?] sign_out, float[?, ?] padding_out, float[?, ?] step_out,
        float[?, ?] width_out, float[?, ?] stalled_out)
    {{
      gap = Sub (upper, lower)
      running = Greater (gap, rtol)
      at_3 = Unsqueeze (at, axis_2)
      d = Sub (at_3, z)
      a = Abs (d)
{evaluate}
      newton = Sub (at, new_step)
      not_above = LessOrEqual (g, zero)
      not_below = GreaterOrEqual (g, zero)
      new_lower = Where (not_above, at, lower)
      new_upper = Where (not_below, at, upper)
      new_sign = Sign (g)
      same_side = Equal (new_sign, sign)
      step_length = Abs (new_step)
      grown = Mul (padding, growth)
      near_step = Mul (near_ratio, step)
      near = LessOrEqual (step_length, near_step)
      kept = Where (near, padding, grown)
      new_padding = Where (same_side, kept, padding_0)
      new_gap = Sub (new_upper, new_lower)
      half_width = Mul (half, width)
      halved = LessOrEqual (new_gap, half_width)
      short_step = Mul (step_ratio, step)
      shortened = LessOrEqual (step_length, short_step)
      progress = Or (halved, shortened)
      stalled_more = Add (stalled, one)
      new_stalled = Where (progress, zero, stalled_more)
      push = Mul (new_sign, new_padding)
      pushed = Sub (newton, push)
      taken = Cast <to = 1> (taken_int)
      passes_over = Sub (max_steps, taken)
      passes_left = Sub (passes_over, two)
      gap_in_rtol = Div (new_gap, rtol)
      gap_safe = Max (gap_in_rtol, tiny)
      gap_log = Log (gap_safe)
      bisections = Div (gap_log, log_2)
      last_call = GreaterOrEqual (bisections, passes_left)
      above = Greater (pushed, new_lower)
      below = Less (pushed, new_upper)
      patient = Less (new_stalled, patience)
      inside = And (above, below)
      fresh = And (inside, patient)
      unhurried = Not (last_call)
      by_newton = And (fresh, unhurried)
      ends = Add (new_lower, new_upper)
      middle = Mul (half, ends)
      next = Where (by_newton, pushed, middle)
      next_width = Where (halved, new_gap, width)
      next_stalled = Where (by_newton, new_stalled, zero)
      at_out = Where (running, next, at)
      lower_out = Where (running, new_lower, lower)
      upper_out = Where (running, new_upper, upper)
      estimate_out = Where (running, newton, estimate)
      sign_out = Where (running, new_sign, sign)
      padding_out = Where (running, new_padding, padding)
      step_out = Where (running, step_length, step)
      width_out = Where (running, next_width, width)
      stalled_out = Where (running, next_stalled, stalled)
      gap_out = Sub (upper_out, lower_out)
      widest = ReduceMax <keepdims = 0> (gap_out)
      go_on = Greater (widest, rtol)
    }}>
  after_lower = Greater (estimate_end, lower_end)
  before_upper = Less (estimate_end, upper_end)
  estimate_inside = And (after_lower, before_upper)
  both_ends = Add (lower_end, upper_end)
  middle_end = Mul (half, both_ends)
  root = Where (estimate_inside, estimate_end, middle_end)
  root_scaled = Mul (root, std)
  group_center = Add (mean, root_scaled)
"""

_BRACKET_BELOW_2 = """
  bound = Constant <value = float {{{bound}}}> ()
  bracket_high = Add (zeros, bound)
  bracket_low = Neg (bracket_high)
"""

_BRACKET_ABOVE_2 = """
  low_deviation = Sub (low, mean)
  high_deviation = Sub (high, mean)
  bracket_low = Div (low_deviation, std)
  bracket_high = Div (high_deviation, std)
"""

_WEIGHTS = """
      a_log = Log (a_safe)
      w_log = Mul (a_log, p_less_3)
      w = Exp (w_log)"""

# The condition is a constant: runtimes that compute constants keep one of the branches.
_WEIGHTS_OR_ROOT = """
      w = If (is_root) <
        then_branch = phi_is_three_halves () => (float[?, ?, ?] w_root) {
          root = Sqrt (a_safe)
          w_root = Reciprocal (root)
        },
        else_branch = any_phi () => (float[?, ?, ?] w_power) {
          a_log = Log (a_safe)
          w_log = Mul (a_log, p_less_3)
          w_power = Exp (w_log)
        }
      >"""

_EVALUATE_BELOW_2 = """
      a_safe = Max (a, tiny)
{weights}
      wd = Mul (w, d)
      w_row = ReduceSum <keepdims = 0> (w, axis_2)
      g_row = ReduceSum <keepdims = 0> (wd, axis_2)
      w_scattered = ScatterElements <axis = 0, reduction = "add"> (zeros, index, w_row)
      g_scattered = ScatterElements <axis = 0, reduction = "add"> (zeros, index, g_row)
      w_sum = Gather <axis = 0> (w_scattered, group)
      g = Gather <axis = 0> (g_scattered, group)
      slope = Mul (p, w_sum)
      new_step = Div (g, slope)
"""

_EVALUATE_ABOVE_2 = """
      reach_low = Sub (at, bracket_low)
      reach_high = Sub (bracket_high, at)
      reach = Max (reach_low, reach_high)
      reach_3 = Unsqueeze (reach, axis_2)
      a_share = Div (a, reach_3)
      a_safe = Max (a_share, tiny)
      a_log = Log (a_safe)
      w_log = Mul (a_log, p_less_3)
      w = Exp (w_log)
      powers = Mul (w, a_safe)
      is_left = Greater (d, zero)
      left_w_all = Where (is_left, w, zero)
      right_w_all = Where (is_left, zero, w)
      left_all = Where (is_left, powers, zero)
      right_all = Where (is_left, zero, powers)
      left_w_row = ReduceSum <keepdims = 0> (left_w_all, axis_2)
      right_w_row = ReduceSum <keepdims = 0> (right_w_all, axis_2)
      left_row = ReduceSum <keepdims = 0> (left_all, axis_2)
      right_row = ReduceSum <keepdims = 0> (right_all, axis_2)
      left_w_scattered = ScatterElements <axis = 0, reduction = "add"> (zeros, index, left_w_row)
      right_w_scattered = ScatterElements <axis = 0, reduction = "add"> (zeros, index, right_w_row)
      left_scattered = ScatterElements <axis = 0, reduction = "add"> (zeros, index, left_row)
      right_scattered = ScatterElements <axis = 0, reduction = "add"> (zeros, index, right_row)
      left_w = Gather <axis = 0> (left_w_scattered, group)
      right_w = Gather <axis = 0> (right_w_scattered, group)
      left_sum = Gather <axis = 0> (left_scattered, group)
      right_sum = Gather <axis = 0> (right_scattered, group)
      left = Max (left_sum, tiny)
      right = Max (right_sum, tiny)
      left_log = Log (left)
      right_log = Log (right)
      left_root_log = Div (left_log, p)
      right_root_log = Div (right_log, p)
      left_root = Exp (left_root_log)
      right_root = Exp (right_root_log)
      g = Sub (left_root, right_root)
      left_ratio = Div (left_root, left)
      right_ratio = Div (right_root, right)
      left_slope = Mul (left_ratio, left_w)
      right_slope = Mul (right_ratio, right_w)
      slope = Add (left_slope, right_slope)
      g_reach = Mul (g, reach)
      new_step = Div (g_reach, slope)
"""


_ONE_PHI = "  phi = Constant <value_float: float = @phi> ()"
_ONE_FOR_ALL = """
  p_less_3 = Identity (p_less)
  minus_half = Constant <value = float {-0.5}> ()
  is_root = Equal (p_less, minus_half)"""
_ALONG_POSITIONS = "  p_less_3 = Unsqueeze (p_less, axis_1)"


def solver_below_2(each: bool = False) -> str:
    """Return the text for 1 < phi < 2: weights |d|^(phi-2), the bracket of one standard deviation.

    With `each`, phi is the function's input `exponents` (C), where it is below 2.
    """
    evaluate = _EVALUATE_BELOW_2.format(weights=_WEIGHTS if each else _WEIGHTS_OR_ROOT)
    return _solver(_BRACKET_BELOW_2, evaluate, "  phi = Min (exponents, two)" if each else None)


def solver_above_2(each: bool = False) -> str:
    """Return the text for 2 < phi < inf: the function h of the two one-sided norms, the bracket [min, max]."""
    return _solver(_BRACKET_ABOVE_2, _EVALUATE_ABOVE_2, "  phi = Max (exponents, two)" if each else None)


def _solver(bracket: str, evaluate: str, each: str | None) -> str:
    return _SOLVER.format(
        bracket=bracket.format(bound=INITIAL_BRACKET),
        evaluate=evaluate,
        phi=each or _ONE_PHI,
        along_positions=_ALONG_POSITIONS if each else _ONE_FOR_ALL,
        padding=PADDING,
        growth=PADDING_GROWTH,
        near_ratio=NEAR_RATIO,
        step_ratio=STEP_RATIO,
        patience=float(PATIENCE),
    )
