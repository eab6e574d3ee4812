"""The norms as ONNX functions: what a node of the domain `augserve` means, in standard operators, opset 18.

Every function takes (x, weight, bias, running_mean, running_spread, group, tracked_weight) and returns y:

    x (N, C, *spatial), weight, bias, running_* (C), group int64 (N), ids 0..N-1, tracked_weight (N) = lambda

    center = lambda running_mean + (1 - lambda) center_of_group,   spread alike
    y = weight (x - center) / divisor(spread) + bias

Rows are summed by themselves, then the sums by group with ScatterElements and handed back to the rows with
Gather: a group's numbers do not depend on the other rows of the run, to the bit, and a NaN or inf stays in its
group. Where lambda = 1 the running statistics are selected, not blended, so that such a row stands for itself.

Statistics are (N, C), with every row of a group holding the same values.
"""

from __future__ import annotations

import onnx
import onnx.parser

from augserve.export.solver_body import solver_above_2, solver_below_2
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
        _VARIANCE + solver_below_2() + _ABOUT_CENTER,
        _ROOT_DIVISOR,
    ),
    "AugNormAbove2": _function(
        "AugNormAbove2",
        "<phi, eps, rtol, max_steps>",
        _VARIANCE + _EXTREMES + solver_above_2() + _ABOUT_CENTER,
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
