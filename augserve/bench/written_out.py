"""AugNorm's function as one writes it first: the whole input at once, Newton's steps one after the other, with Pow.

It brackets nothing and knows no end; `measure_files` compares the functions that the exporter writes with it.
"""

from __future__ import annotations

import onnx
import onnx.parser

from augserve.operators import DOMAIN

STEPS = 8
NAME = "AugNorm"

_FUNCTION = """<opset_import: ["" : 18], domain: "{domain}">
AugNorm <phi, eps, rtol, max_steps> (x, weight, bias, running_mean, running_spread, group, tracked_weight) => (y)
{{
  phi = Constant <value_float: float = @phi> ()
  eps = Constant <value_float: float = @eps> ()
  one = Constant <value = float {{1.0}}> ()
  tiny = Constant <value = float {{1e-30}}> ()
  axis_1 = Constant <value_ints = [1]> ()
  axis_2 = Constant <value_ints = [2]> ()
  flat = Constant <value_ints = [0, 0, -1]> ()
  p = Sub (phi, one)
  p_less = Sub (p, one)
  shape = Shape (x)
  rows_channels = Shape <start = 0, end = 2> (x)
  x3 = Reshape (x, flat)
  group_column = Unsqueeze (group, axis_1)
  index = Expand (group_column, rows_channels)
  zeros = ConstantOfShape <value = float[1] {{0.0}}> (rows_channels)
  lambda = Unsqueeze (tracked_weight, axis_1)
  tracked = GreaterOrEqual (lambda, one)
  size = Shape <start = 2, end = 3> (x3)
  positions = Cast <to = 1> (size)
  ones_row = Expand (positions, rows_channels)
  count_all = ScatterElements <axis = 0, reduction = "add"> (zeros, index, ones_row)
  count = Gather <axis = 0> (count_all, group)
  x_row = ReduceSum <keepdims = 0> (x3, axis_2)
  x_all = ScatterElements <axis = 0, reduction = "add"> (zeros, index, x_row)
  x_sum = Gather <axis = 0> (x_all, group)
  mean = Div (x_sum, count)
  mean_3 = Unsqueeze (mean, axis_2)
  deviation = Sub (x3, mean_3)
  square = Mul (deviation, deviation)
  square_row = ReduceSum <keepdims = 0> (square, axis_2)
  square_all = ScatterElements <axis = 0, reduction = "add"> (zeros, index, square_row)
  square_sum = Gather <axis = 0> (square_all, group)
  var = Div (square_sum, count)
  root_var = Sqrt (var)
  std = Max (root_var, tiny)
  std_3 = Unsqueeze (std, axis_2)
  z = Div (deviation, std_3)
{steps}
  root = Mul (at_{last}, std)
  root_squared = Mul (root, root)
  batch_center = Add (mean, root)
  batch_spread = Add (var, root_squared)
  rest = Sub (one, lambda)
  tracked_center = Mul (lambda, running_mean)
  tracked_spread = Mul (lambda, running_spread)
  own_center = Mul (rest, batch_center)
  own_spread = Mul (rest, batch_spread)
  blend_center = Add (tracked_center, own_center)
  blend_spread = Add (tracked_spread, own_spread)
  center = Where (tracked, running_mean, blend_center)
  spread = Where (tracked, running_spread, blend_spread)
  spread_eps = Add (spread, eps)
  divisor = Sqrt (spread_eps)
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

_STEP = """
  at_3_{k} = Unsqueeze ({at}, axis_2)
  d_{k} = Sub (at_3_{k}, z)
  a_{k} = Abs (d_{k})
  safe_{k} = Max (a_{k}, tiny)
  w_{k} = Pow (safe_{k}, p_less)
  wd_{k} = Mul (w_{k}, d_{k})
  w_row_{k} = ReduceSum <keepdims = 0> (w_{k}, axis_2)
  g_row_{k} = ReduceSum <keepdims = 0> (wd_{k}, axis_2)
  w_all_{k} = ScatterElements <axis = 0, reduction = "add"> (zeros, index, w_row_{k})
  g_all_{k} = ScatterElements <axis = 0, reduction = "add"> (zeros, index, g_row_{k})
  w_sum_{k} = Gather <axis = 0> (w_all_{k}, group)
  g_sum_{k} = Gather <axis = 0> (g_all_{k}, group)
  slope_{k} = Mul (p, w_sum_{k})
  step_{k} = Div (g_sum_{k}, slope_{k})
  at_{k} = Sub ({at}, step_{k})
"""


def write_out(model: onnx.ModelProto) -> None:
    """Put this function in the place of the model's AugNorm, if it has one."""
    steps = "".join(_STEP.format(k=k, at=f"at_{k - 1}" if k else "zeros") for k in range(STEPS))
    for function in model.functions:
        if function.name == NAME:
            function.CopyFrom(
                onnx.parser.parse_function(_FUNCTION.format(domain=DOMAIN, steps=steps, last=STEPS - 1))
            )
