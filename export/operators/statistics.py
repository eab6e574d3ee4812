"""A group's center and spread that need no solver, as text for the functions of `body`.

Each text uses what the function has made of a block of channels: its values b (N, B, L), zeros (G, B, 1), the mean
of each group (G, B, 1), its count of rows, group (N). Sums of rows are summed over rows_axis, then scattered by
index, (N, B, 1) or, of one group, (1, B, 1). It defines center and spread, (G, B, 1).
Groups of whose ids no row is have no numbers, and nothing reads them.
"""

from __future__ import annotations

VARIANCE = """
      mean_of_row = Gather <axis = 0> (mean, group)
      z = Sub (b, mean_of_row)
      square = Mul (z, z)
      row_var = ReduceMean (square, two_1)
      var_terms = ReduceSum <noop_with_empty_axes = 1> (row_var, rows_axis)
      var_sum = ScatterElements <axis = 0, reduction = "add"> (zeros, index, var_terms)
      var = Div (var_sum, count)
"""

MEAN = """
      center = Identity (mean)
      spread = Identity (var)
"""

# Of a center that is not the mean: root = center - mean.
ABOUT_CENTER = """
      root_squared = Mul (root, root)
      spread = Add (var, root_squared)
"""


def extremes(values: str) -> str:
    """Return the text that makes low and high (G, B, 1) of `values`."""
    return f"""
      highest = Add (zeros, infinity)
      lowest = Neg (highest)
      term_axes = Concat <axis = 0> (rows_axis, two_1)
      low_terms = ReduceMin ({values}, term_axes)
      high_terms = ReduceMax ({values}, term_axes)
      low = ScatterElements <axis = 0, reduction = "min"> (highest, index, low_terms)
      high = ScatterElements <axis = 0, reduction = "max"> (lowest, index, high_terms)
"""


MIDRANGE = (
    extremes("b")
    + """
      low_half = Div (low, two)
      high_half = Div (high, two)
      center = Add (low_half, high_half)
      root = Sub (center, mean)
"""
    + ABOUT_CENTER
)

RANGE = (
    extremes("b")
    + """
      center = Identity (mean)
      spread = Sub (high, low)
"""
)

POWER_OF_RANGE = (
    extremes("b")
    + """
      p = Constant <value_float: float = @p> ()
      range = Sub (high, low)
      center = Identity (mean)
      spread = Pow (range, p)
"""
)

# Every channel is sorted by value, then (TopK keeps the order of equals) by group, so that each group is a run.
MEDIAN = (
    """
      channel_values = Constant <value = int64[2] {0, -1}> ()
      minus_1 = Constant <value = int64[1] {-1}> ()
      axis_0 = Constant <value = int64 {0}> ()
      channels_first = Transpose <perm = [1, 0, 2]> (b)
      unsafe = Reshape (channels_first, channel_values)
      is_nan = IsNaN (unsafe)
      safe = Where (is_nan, zero, unsafe)
      total = Shape <start = 1, end = 2> (safe)
      rows = Shape <start = 0, end = 1> (b)
      positions = Shape <start = 2, end = 3> (b)
      grid = Concat <axis = 0> (rows, positions)
      group_2 = Unsqueeze (group, one_1)
      group_grid = Expand (group_2, grid)
      group_of_value = Reshape (group_grid, minus_1)
      sorted, order = TopK <axis = 1, largest = 0, sorted = 1> (safe, total)
      group_of_sorted = Gather <axis = 0> (group_of_value, order)
      group_runs, group_order = TopK <axis = 1, largest = 0, sorted = 1> (group_of_sorted, total)
      group_order_3 = Unsqueeze (group_order, two_1)
      runs = GatherND <batch_dims = 1> (sorted, group_order_3)
      no_values = ConstantOfShape <value = int64[1] {0}> (groups)
      row_values = Expand (positions, rows)
      sizes = ScatterElements <axis = 0, reduction = "add"> (no_values, group, row_values)
      starts = CumSum <exclusive = 1> (sizes, axis_0)
      size_less = Sub (sizes, one_1)
      to_lower = Div (size_less, two_1)
      to_upper = Div (sizes, two_1)
      lower_at = Add (starts, to_lower)
      upper_at = Add (starts, to_upper)
      lower_middle = Gather <axis = 1> (runs, lower_at)
      upper_middle = Gather <axis = 1> (runs, upper_at)
      lower_half = Div (lower_middle, two)
      upper_half = Div (upper_middle, two)
      middle = Add (lower_half, upper_half)
      middle_2 = Transpose <perm = [1, 0]> (middle)
      middle_3 = Unsqueeze (middle_2, two_1)
      nan_if_not_finite = Mul (mean, zero)
      center = Add (middle_3, nan_if_not_finite)
      root = Sub (center, mean)
"""
    + ABOUT_CENTER
)
