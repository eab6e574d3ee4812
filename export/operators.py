"""The norms as ONNX functions: what a node of the domain `augserve` means, in standard operators, opset 18.

Every function takes (x, weight, bias, running_mean, running_spread, group, tracked_weight) and returns y:

    x (N, C, *spatial), weight, bias, running_* (C), group int64 (N), ids 0..N-1, tracked_weight (N) = lambda

    center = lambda running_mean + (1 - lambda) center_of_group,   spread alike
    y = weight (x - center) / divisor(spread) + bias

Rows are summed by themselves, then the sums by group with ScatterElements and handed back to the rows with
Gather: a group's numbers do not depend on the other rows of the run, to the bit, and a NaN or inf stays in its
group. Where lambda = 1 the running statistics are selected, not blended, so that such a row stands for itself;
where all rows are such rows, statistics are not computed.

Statistics are (N, C), with every row of a group holding the same values.
"""

from __future__ import annotations

import onnx
import onnx.parser

from augserve.export.solver_body import solver_above_2, solver_below_2
from augserve.norms.symbolic import DOMAIN, LEARNED

OPSET = 18
BELOW_2, ABOVE_2 = f"{LEARNED}Below2", f"{LEARNED}Above2"  # the halves of AugNormLearned

_HEAD = """<opset_import: ["" : 18], domain: "augserve">
{name} {attributes} ({inputs}) => (y)
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
  own = Not (tracked)
  own_rows = Cast <to = 7> (own)
  own_count = ReduceSum <keepdims = 0> (own_rows)
  no_rows = Constant <value = int64 {{0}}> ()
  any_own = Greater (own_count, no_rows)
  batch_center, batch_spread = If (any_own) <
    then_branch = with_statistics () => (float[?, ?] group_center, float[?, ?] group_spread) {{
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
    }},
    else_branch = all_tracked () => (float[?, ?] no_center, float[?, ?] no_spread) {{
      no_center = Identity (zeros)
      no_spread = Identity (zeros)
    }}
  >
  rest = Sub (one, lambda)
  tracked_center = Mul (lambda, running_mean)
  tracked_spread = Mul (lambda, running_spread)
  own_center = Mul (rest, batch_center)
  own_spread = Mul (rest, batch_spread)
  blend_center = Add (tracked_center, own_center)
  blend_spread = Add (tracked_spread, own_spread)
  center = Where (tracked, running_mean, blend_center)
  spread = Where (tracked, running_spread, blend_spread)
{divisor}
  scale = Div (weight, divisor)
  scale_3 = Unsqueeze (scale, axis_2)
  center_3 = Unsqueeze (center, axis_2)
  bias_3 = Unsqueeze (bias, axis_1)
  centered = Sub (x3, center_3)
  scaled = Mul (centered, scale_3)
  y3 = Add (scaled, bias_3)
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
  range_p = Constant <value_float: float = @p> ()
  range_log_p = Mul (range_log, range_p)
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
  group_order_3 = Unsqueeze (group_order, axis_2)
  runs = GatherND <batch_dims = 1> (sorted_values, group_order_3)
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


INPUTS = ("x", "weight", "bias", "running_mean", "running_spread", "group", "tracked_weight")
_SOLVER_ATTRIBUTES = ("eps", "rtol", "max_steps")


def _function(
    name: str, attributes: tuple[str, ...], statistics: str, divisor: str, more: tuple[str, ...] = ()
) -> str:
    head = _HEAD.format(name=name, attributes=f"<{', '.join(attributes)}>", inputs=", ".join(INPUTS + more))
    return head + statistics + _TAIL.format(divisor=divisor)


_EACH = ("exponents",)

# Operator: its attributes, the text of its group's statistics, that of the divisor, and inputs of its own.
_PARTS: dict[str, tuple[tuple[str, ...], str, str] | tuple[tuple[str, ...], str, str, tuple[str, ...]]] = {
    "BatchNorm": (("eps",), _VARIANCE + _MEAN_CENTER, _ROOT_DIVISOR),
    "MedianNorm": (("eps",), _VARIANCE + _MEDIAN_CENTER + _ABOUT_CENTER, _ROOT_DIVISOR),
    "MidrangeNorm": (("eps",), _VARIANCE + _EXTREMES + _MIDRANGE_CENTER + _ABOUT_CENTER, _ROOT_DIVISOR),
    "AugNorm": (("phi", *_SOLVER_ATTRIBUTES), _VARIANCE + solver_below_2() + _ABOUT_CENTER, _ROOT_DIVISOR),
    "AugNormAbove2": (
        ("phi", *_SOLVER_ATTRIBUTES),
        _VARIANCE + _EXTREMES + solver_above_2() + _ABOUT_CENTER,
        _ROOT_DIVISOR,
    ),
    "RobustNorm": (("p", "eps"), _EXTREMES + _ROBUST + _GROUP_RANGE + _POWER_OF_RANGE, _PLAIN_DIVISOR),
    "RobustRangeNorm": (
        ("p", "eps"),
        _EXTREMES + _ROBUST + _GROUP_RANGE + "  group_spread = Identity (extent)\n",
        _POWER_OF_RANGE_DIVISOR,
    ),
    BELOW_2: (_SOLVER_ATTRIBUTES, _VARIANCE + solver_below_2(each=True) + _ABOUT_CENTER, _ROOT_DIVISOR, _EACH),
    ABOVE_2: (
        _SOLVER_ATTRIBUTES,
        _VARIANCE + _EXTREMES + solver_above_2(each=True) + _ABOUT_CENTER,
        _ROOT_DIVISOR,
        _EACH,
    ),
}

_SOURCES = {name: _function(name, *parts) for name, parts in _PARTS.items()}

ATTRIBUTES = {name: parts[0] for name, parts in _PARTS.items()}
OPERATORS = tuple(_SOURCES)


def function_body(name: str) -> onnx.FunctionProto:
    """Return the function of one operator of `OPERATORS`; see `functions` for those that are made of them."""
    function = onnx.parser.parse_function(_SOURCES[name])
    if function.domain != DOMAIN:
        raise ValueError(f"the function {name} belongs to {function.domain}, not {DOMAIN}")
    return function
