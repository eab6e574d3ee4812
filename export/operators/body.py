"""The norms as ONNX functions: what a node of the domain `augserve` means, in standard operators, opset 18.

Every function takes (x, weight, bias, running_mean, running_spread, group, tracked_weight) and returns y:

    x (N, C, *spatial), weight, bias, running_* (C), group int64 (N), ids 0..G-1, tracked_weight (N) = lambda

    center = lambda running_mean + (1 - lambda) center_of_group,   spread alike
    y = weight (x - center) / divisor(spread) + bias

Rows are summed by themselves, then the sums by group with ScatterElements, which adds one after the other: what
other groups hold changes no bit of a group, and a NaN or inf stays in its group. Where all rows are one group,
ReduceSum over `rows_axis` adds them before, faster and in the same order; else that is no axis. Where lambda = 1
the running statistics are selected, not blended, so that such a row stands for itself.

Statistics are made in a Loop over blocks of channels, small enough that what is in between stays in cache; where
every row is tracked, the Loop makes no pass. In it they are (G, channels of the block, 1); the Loop carries centers
and spreads of the rows, (N, C, 2). It begins with other numbers in their place, and each pass takes the first
channels off and puts the block's behind the last.
"""

from __future__ import annotations

import onnx
import onnx.parser

from augserve.export.operators import statistics as text
from augserve.export.operators.compact import compact
from augserve.export.operators.solver import above_2, below_2
from augserve.operators import DOMAIN, NODE_INPUTS, Operator, Spread

BLOCK_VALUES = 2**19  # of a block of channels; the solver goes over them again and again

_FUNCTION = """<opset_import: ["" : 18], domain: "{domain}">
{name} <{attributes}> ({inputs}) => (y)
{{
  eps = Constant <value_float: float = @eps> ()
  zero = Constant <value = float {{0.0}}> ()
  one = Constant <value = float {{1.0}}> ()
  two = Constant <value = float {{2.0}}> ()
  infinity = Constant <value_float = inf> ()
  zero_1 = Constant <value = int64[1] {{0}}> ()
  one_1 = Constant <value = int64[1] {{1}}> ()
  two_1 = Constant <value = int64[1] {{2}}> ()
  last_axes = Constant <value = int64[2] {{1, 2}}> ()
  flat = Constant <value = int64[3] {{0, 0, -1}}> ()
  no_end = Constant <value = int64[1] {{9223372036854775807}}> ()
  block_values = Constant <value = int64[1] {{{block_values}}}> ()
  x3 = Reshape (x, flat)
  group_3 = Unsqueeze (group, last_axes)
  lambda = Unsqueeze (tracked_weight, last_axes)
  above_0 = Sub (one, lambda)
  rest = Relu (above_0)
  own = Cast <to = 9> (rest)
  rest_sum = ReduceSum <keepdims = 0> (rest)
  any_own = Cast <to = 9> (rest_sum)
  mean_column = Unsqueeze (running_mean, one_1)
  spread_column = Unsqueeze (running_spread, one_1)
  running_two = Concat <axis = 1> (mean_column, spread_column)
  tracked = Mul (lambda, running_two)
{once}
  batch = Loop (no_end, any_own, tracked) <
    body = one_block (int64 trip, bool going, float[?, ?, ?] before)
      => (bool[?] more, float[?, ?, ?] after) {{
      channels = Shape <start = 1, end = 2> (x3)
      values = Size (x3)
      of_channel = Div (values, channels)
      at_least_1 = Max (of_channel, one_1)
      whole_channels = Div (block_values, at_least_1)
      block = Max (whole_channels, one_1)
      start = Mul (trip, block)
      end = Add (start, block)
      more = Less (end, channels)
      b = Slice (x3, start, end, one_1)
      last_group = ReduceMax <keepdims = 1> (group)
      groups = Add (last_group, one_1)
      several = Min (last_group, one_1)
      rows_axis = Slice (zero_1, several, no_end)
      row_mean = ReduceMean (b, two_1)
      mean_terms = ReduceSum <noop_with_empty_axes = 1> (row_mean, rows_axis)
      terms = Shape (mean_terms)
      group_of_term = ReduceMax <noop_with_empty_axes = 1> (group_3, rows_axis)
      index = Expand (group_of_term, terms)
      zero_terms = ConstantOfShape (terms)
      zeros = Slice (zero_terms, zero_1, groups)
      rows_channels = Shape (row_mean)
      one_rows = ConstantOfShape <value = float[1] {{1.0}}> (rows_channels)
      count_terms = ReduceSum <noop_with_empty_axes = 1> (one_rows, rows_axis)
      count = ScatterElements <axis = 0, reduction = "add"> (zeros, index, count_terms)
      mean_sum = ScatterElements <axis = 0, reduction = "add"> (zeros, index, mean_terms)
      mean = Div (mean_sum, count)
{statistics}
      center_spread = Concat <axis = 2> (center, spread)
      of_rows = Gather <axis = 0> (center_spread, group)
      width = Shape <start = 1, end = 2> (b)
      others = Slice (before, width, no_end, one_1)
      after = Concat <axis = 1> (others, of_rows)
    }}>
  own_part = Mul (rest, batch)
  blend = Add (tracked, own_part)
  chosen = Where (own, blend, running_two)
  row_center, spread_of_row = Split <axis = 2, num_outputs = 2> (chosen)
  row_spread = Squeeze (spread_of_row, two_1)
{divisor}
  scale_of_row = Div (weight, divisor)
  scale = Unsqueeze (scale_of_row, two_1)
  bias_column = Unsqueeze (bias, one_1)
  centered = Sub (x3, row_center)
  scaled = Mul (centered, scale)
  y3 = Add (scaled, bias_column)
  shape = Shape (x)
  y = Reshape (y3, shape)
}}
"""

_DIVISORS: dict[Spread, str] = {
    "variance": """
  spread_eps = Add (row_spread, eps)
  divisor = Sqrt (spread_eps)
""",
    "denominator": """
  divisor = Add (row_spread, eps)
""",
    "range": """
  p = Constant <value_float: float = @p> ()
  power = Pow (row_spread, p)
  divisor = Add (power, eps)
""",
}

# Of each operator: what is made once, and its group's statistics.
_BODIES = {
    "BatchNorm": ("", text.VARIANCE + text.MEAN),
    "MedianNorm": ("", text.VARIANCE + text.MEDIAN),
    "MidrangeNorm": ("", text.VARIANCE + text.MIDRANGE),
    "AugNorm": below_2(),
    "AugNormAbove2": above_2(),
    "AugNormLearned": above_2(each=True),
    "RobustNorm": ("", text.POWER_OF_RANGE),
    "RobustRangeNorm": ("", text.RANGE),
}


def function_body(operator: Operator, root: bool = False) -> onnx.FunctionProto:
    """Return the function of one operator; see `functions` for what follows a norm.

    With `root` AugNorm's is for nodes with phi = ROOT alone: its weights take no logarithm.
    """
    once, statistics = below_2(root=True) if root and operator.name == "AugNorm" else _BODIES[operator.name]
    source = _FUNCTION.format(
        domain=DOMAIN,
        name=operator.name,
        attributes=", ".join(operator.attributes),
        inputs=", ".join(NODE_INPUTS + operator.inputs),
        block_values=BLOCK_VALUES,
        once=once,
        statistics=statistics,
        divisor=_DIVISORS[operator.spread],
    )
    return compact(onnx.parser.parse_function(source))
