"""The norms as ONNX functions: what a node of the domain `augserve` means, in standard operators, opset 18.

Every function takes (x, weight, bias, running_mean, running_spread, group, tracked_weight) and returns y:

    x (N, C, *spatial), weight, bias, running_* (C), group int64 (N), ids 0..N-1, tracked_weight (N) = lambda

    center = lambda running_mean + (1 - lambda) center_of_group,   spread alike
    y = weight (x - center) / divisor(spread) + bias

Rows are summed by themselves, then the sums by group with ScatterElements and handed back to the rows with
Gather: a group's numbers do not depend on the other rows of the run, to the bit, and a NaN or inf stays in its
group. Where lambda = 1 the running statistics are selected, not blended, so that such a row stands for itself.

Statistics are (N, C), with every row of a group holding the same values. The solver is that of
augserve.norms.median.solve with the same constants; a row that has stopped is not touched again.
"""

from __future__ import annotations

import onnx
import onnx.parser

from augserve.norms.median.solve import INITIAL_BRACKET, PADDING, PADDING_GROWTH, PATIENCE, STEP_RATIO
from augserve.norms.symbolic import DOMAIN

OPSET = 18

_HEAD = """<opset_import: ["" : 18], domain: "augserve">
{name} {attributes} (x, weight, bias, running_mean, running_spread, group, tracked_weight) => (y)
{{
  eps = Constant <value_float: float = @eps> ()
  zero = Constant <value = float {{0.0}}> ()
  one = Constant <value = float {{1.0}}> ()
  two = Constant <value = float {{2.0}}> ()
  axis_1 = Constant <value_ints = [1]> ()
  axis_2 = Constant <value_ints = [2]> ()
  flat = Constant <value_ints = [0, 0, -1]> ()
  shape = Shape (x)
  rows_channels = Shape <start = 0, end = 2> (x)
  x3 = Reshape (x, flat)
  group_column = Unsqueeze (group, axis_1)
  index = Expand (group_column, rows_channels)
  zeros = ConstantOfShape <value = float[1] {{0.0}}> (rows_channels)
  lambda = Unsqueeze (tracked_weight, axis_1)
  tracked = GreaterOrEqual (lambda, one)
  positions_1 = Shape <start = 2, end = 3> (x3)
  positions = Cast <to = 1> (positions_1)
  ones_row = Expand (positions, rows_channels)
  count_scattered = ScatterElements <axis = 0, reduction = "add"> (zeros, index, ones_row)
  count = Gather <axis = 0> (count_scattered, group)
  x_sum = ReduceSum <keepdims = 0> (x3, axis_2)
  x_sum_scattered = ScatterElements <axis = 0, reduction = "add"> (zeros, index, x_sum)
  x_sum_group = Gather <axis = 0> (x_sum_scattered, group)
  mean = Div (x_sum_group, count)
  mean_3 = Unsqueeze (mean, axis_2)
  deviation = Sub (x3, mean_3)
"""

_VARIANCE = """
  square = Mul (deviation, deviation)
  square_sum = ReduceSum <keepdims = 0> (square, axis_2)
  square_sum_scattered = ScatterElements <axis = 0, reduction = "add"> (zeros, index, square_sum)
  square_sum_group = Gather <axis = 0> (square_sum_scattered, group)
  var = Div (square_sum_group, count)
"""

_EXTREMES = """
  infinity = Constant <value_float = inf> ()
  infinities = Expand (infinity, rows_channels)
  minus_infinities = Neg (infinities)
  row_low = ReduceMin <keepdims = 0> (x3, axis_2)
  row_high = ReduceMax <keepdims = 0> (x3, axis_2)
  low_scattered = ScatterElements <axis = 0, reduction = "min"> (infinities, index, row_low)
  high_scattered = ScatterElements <axis = 0, reduction = "max"> (minus_infinities, index, row_high)
  low = Gather <axis = 0> (low_scattered, group)
  high = Gather <axis = 0> (high_scattered, group)
"""

_ABOUT_CENTER = """
  shift_of_center = Sub (mean, group_center)
  shift_squared = Mul (shift_of_center, shift_of_center)
  group_spread = Add (var, shift_squared)
"""

_TAIL = """
  rest = Sub (one, lambda)
  tracked_center = Mul (lambda, running_mean)
  tracked_spread = Mul (lambda, running_spread)
  own_center = Mul (rest, group_center)
  own_spread = Mul (rest, group_spread)
  blend_center = Add (tracked_center, own_center)
  blend_spread = Add (tracked_spread, own_spread)
  center = Where (tracked, running_mean, blend_center)
  spread = Where (tracked, running_spread, blend_spread)
{divisor}
  scale = Div (weight, divisor)
  scaled_center = Mul (center, scale)
  offset = Sub (bias, scaled_center)
  scale_3 = Unsqueeze (scale, axis_2)
  offset_3 = Unsqueeze (offset, axis_2)
  scaled = Mul (x3, scale_3)
  y3 = Add (scaled, offset_3)
  y = Reshape (y3, shape)
}}
"""

_ROOT_DIVISOR = """
  spread_eps = Add (spread, eps)
  divisor = Sqrt (spread_eps)
"""
_PLAIN_DIVISOR = """
  divisor = Add (spread, eps)
"""
_POWER_OF_RANGE_DIVISOR = """
  range_is_zero = Equal (spread, zero)
  range_safe = Where (range_is_zero, one, spread)
  range_log = Log (range_safe)
  range_log_p = Mul (range_log, p)
  range_power = Exp (range_log_p)
  denominator = Where (range_is_zero, zero, range_power)
  divisor = Add (denominator, eps)
"""

_MEAN_CENTER = """
  group_center = Identity (mean)
  group_spread = Identity (var)
"""

_MIDRANGE_CENTER = """
  low_half = Div (low, two)
  high_half = Div (high, two)
  group_center = Add (low_half, high_half)
"""

# Every channel is sorted by value, then (TopK keeps the order of equals) by group, so that each group is a run.
_MEDIAN_CENTER = """
  last_first = Transpose <perm = [1, 0, 2]> (x3)
  channel_values = Constant <value_ints = [0, -1]> ()
  unsafe = Reshape (last_first, channel_values)
  is_nan = IsNaN (unsafe)
  values = Where (is_nan, zero, unsafe)
  total = Shape <start = 1, end = 2> (values)
  row_positions = Shape <start = 2, end = 3> (x3)
  rows_1 = Shape <start = 0, end = 1> (x3)
  row_grid = Concat <axis = 0> (rows_1, row_positions)
  group_grid = Expand (group_column, row_grid)
  minus_one = Constant <value_ints = [-1]> ()
  group_flat = Reshape (group_grid, minus_one)
  sorted_values, value_order = TopK <axis = 1, largest = 0, sorted = 1> (values, total)
  group_of_sorted = Gather <axis = 0> (group_flat, value_order)
  group_runs, group_order = TopK <axis = 1, largest = 0, sorted = 1> (group_of_sorted, total)
  runs = GatherElements <axis = 1> (sorted_values, group_order)
  rows_only = Shape <start = 0, end = 1> (x3)
  zero_rows = ConstantOfShape <value = int64[1] {0}> (rows_only)
  row_values = Expand (row_positions, rows_only)
  sizes = ScatterElements <axis = 0, reduction = "add"> (zero_rows, group, row_values)
  axis_0 = Constant <value = int64 {0}> ()
  starts = CumSum <exclusive = 1> (sizes, axis_0)
  size = Gather <axis = 0> (sizes, group)
  start = Gather <axis = 0> (starts, group)
  one_int = Constant <value = int64 {1}> ()
  two_int = Constant <value = int64 {2}> ()
  size_less = Sub (size, one_int)
  lower_offset = Div (size_less, two_int)
  upper_offset = Div (size, two_int)
  lower_at = Add (start, lower_offset)
  upper_at = Add (start, upper_offset)
  lower_middle = Gather <axis = 1> (runs, lower_at)
  upper_middle = Gather <axis = 1> (runs, upper_at)
  lower_half = Div (lower_middle, two)
  upper_half = Div (upper_middle, two)
  median = Add (lower_half, upper_half)
  median_rows = Transpose <perm = [1, 0]> (median)
  nan_if_not_finite = Mul (x_sum_group, zero)
  group_center = Add (median_rows, nan_if_not_finite)
"""

_SOLVER = """
  phi = Constant <value_float: float = @phi> ()
  rtol = Constant <value_float: float = @rtol> ()
  max_steps_int = Constant <value_int: int = @max_steps> ()
  max_steps = Cast <to = 1> (max_steps_int)
  p = Sub (phi, one)
  p_less = Sub (p, one)
  tiny = Constant <value = float {{1e-30}}> ()
  half = Constant <value = float {{0.5}}> ()
  first_padding = Constant <value = float {{{padding}}}> ()
  growth = Constant <value = float {{{growth}}}> ()
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
    body = one_pass (int64 taken_int, bool going, float[n, c] at, float[n, c] lower, float[n, c] upper,
        float[n, c] estimate, float[n, c] sign, float[n, c] padding, float[n, c] step, float[n, c] width,
        float[n, c] stalled)
      => (bool go_on, float[n, c] at_out, float[n, c] lower_out, float[n, c] upper_out,
        float[n, c] estimate_out, float[n, c] sign_out, float[n, c] padding_out, float[n, c] step_out,
        float[n, c] width_out, float[n, c] stalled_out)
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
      grown = Mul (padding, growth)
      new_padding = Where (same_side, grown, padding_0)
      new_gap = Sub (new_upper, new_lower)
      half_width = Mul (half, width)
      halved = LessOrEqual (new_gap, half_width)
      step_length = Abs (new_step)
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

_EVALUATE_BELOW_2 = """
      a_safe = Max (a, tiny)
      a_log = Log (a_safe)
      w_log = Mul (a_log, p_less)
      w = Exp (w_log)
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
      w_log = Mul (a_log, p_less)
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

_GROUP_RANGE = """
  extent = Sub (high, low)
"""
_POWER_OF_RANGE = """
  extent_is_zero = Equal (extent, zero)
  extent_safe = Where (extent_is_zero, one, extent)
  extent_log = Log (extent_safe)
  extent_log_p = Mul (extent_log, p)
  extent_power = Exp (extent_log_p)
  group_spread = Where (extent_is_zero, zero, extent_power)
"""
_ROBUST = """
  p = Constant <value_float: float = @p> ()
  group_center = Identity (mean)
"""


def _solver(bracket: str, evaluate: str) -> str:
    return _SOLVER.format(
        bracket=bracket.format(bound=INITIAL_BRACKET),
        evaluate=evaluate,
        padding=PADDING,
        growth=PADDING_GROWTH,
        step_ratio=STEP_RATIO,
        patience=float(PATIENCE),
    )


def _function(name: str, attributes: str, statistics: str, divisor: str) -> str:
    return _HEAD.format(name=name, attributes=attributes) + statistics + _TAIL.format(divisor=divisor)


_SOURCES = {
    "BatchNorm": _function("BatchNorm", "<eps>", _VARIANCE + _MEAN_CENTER, _ROOT_DIVISOR),
    "MedianNorm": _function("MedianNorm", "<eps>", _VARIANCE + _MEDIAN_CENTER + _ABOUT_CENTER, _ROOT_DIVISOR),
    "MidrangeNorm": _function(
        "MidrangeNorm", "<eps>", _VARIANCE + _EXTREMES + _MIDRANGE_CENTER + _ABOUT_CENTER, _ROOT_DIVISOR
    ),
    "AugNorm": _function(
        "AugNorm",
        "<phi, eps, rtol, max_steps>",
        _VARIANCE + _solver(_BRACKET_BELOW_2, _EVALUATE_BELOW_2) + _ABOUT_CENTER,
        _ROOT_DIVISOR,
    ),
    "AugNormAbove2": _function(
        "AugNormAbove2",
        "<phi, eps, rtol, max_steps>",
        _VARIANCE + _EXTREMES + _solver(_BRACKET_ABOVE_2, _EVALUATE_ABOVE_2) + _ABOUT_CENTER,
        _ROOT_DIVISOR,
    ),
    "RobustNorm": _function(
        "RobustNorm", "<p, eps>", _EXTREMES + _ROBUST + _GROUP_RANGE + _POWER_OF_RANGE, _PLAIN_DIVISOR
    ),
    "RobustRangeNorm": _function(
        "RobustRangeNorm",
        "<p, eps>",
        _EXTREMES + _ROBUST + _GROUP_RANGE + "  group_spread = Identity (extent)\n",
        _POWER_OF_RANGE_DIVISOR,
    ),
}

OPERATORS = tuple(_SOURCES)


def function_body(name: str) -> onnx.FunctionProto:
    """Return the function of one operator of the domain `augserve`."""
    function = onnx.parser.parse_function(_SOURCES[name])
    if function.domain != DOMAIN:
        raise ValueError(f"the function {name} belongs to {function.domain}, not {DOMAIN}")
    return function
