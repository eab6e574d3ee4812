"""What a converted norm should answer, by its definition, in NumPy and float64: the judge of the parity report.

center, spread = lambda tracked + (1 - lambda) group's,     y = weight (x - center) / sqrt(spread + eps) + bias
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
HALVINGS = 48  # of the range of the values: an error far below that of float32
RELATIVE = 1e-4  # of the largest value of a channel: the solver stops within 1e-5 of a standard deviation
ROUNDING = 2e-6  # of |x| in standard deviations: float32 rounds x and its sums before the mean is taken off


def median_of(x: Floats, phi: float) -> Floats:
    """Return argmin_y sum |x - y|^phi of each row of x (C, M), by the sign of the derivative."""
    if phi == 1:
        median: Floats = np.median(x, axis=1)
        return median
    if phi == 2:
        mean: Floats = x.mean(axis=1)
        return mean
    low: Floats = x.min(axis=1)
    high: Floats = x.max(axis=1)
    if not math.isinf(phi):
        for _ in range(HALVINGS):
            middle = low / 2 + high / 2
            d = middle[:, None] - x
            reach = np.maximum(np.abs(d).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
            slope = (np.sign(d) * (np.abs(d) / reach) ** (phi - 1)).sum(axis=1)
            low, high = np.where(slope <= 0, middle, low), np.where(slope >= 0, middle, high)
    result: Floats = low / 2 + high / 2
    return result


def normalized(
    x: npt.NDArray[np.generic],
    parameters: Mapping[str, Floats],
    group: npt.NDArray[np.int64],
    tracked_weight: npt.NDArray[np.float32],
    phi: float,
    eps: float,
) -> tuple[Floats, Floats]:
    """Return y, and the error that float32 may have in it.

    Args:
        x: (N, C, ...).
        parameters: weight, bias, mean and var, each (C,).
        group: ids (N,).
        tracked_weight: lambda of each row, equal within a group.
        phi: 2 for BatchNorm.
        eps: added to the spread.
    """
    values = x.astype(np.float64).reshape(*x.shape[:2], -1)  # (N, C, L)
    y, allowed = np.empty_like(values), np.empty_like(values)
    for g in np.unique(group):
        mine = group == g
        columns = values[mine].transpose(1, 0, 2).reshape(values.shape[1], -1)
        center = median_of(columns, phi)
        spread = ((columns - center[:, None]) ** 2).mean(axis=1)
        rate = float(tracked_weight[mine][0])
        center = rate * parameters["mean"] + (1 - rate) * center
        spread = rate * parameters["var"] + (1 - rate) * spread
        scale = parameters["weight"] / np.sqrt(spread + eps)
        result = (columns - center[:, None]) * scale[:, None] + parameters["bias"][:, None]
        largest = np.abs(result).max(axis=1) + np.abs(parameters["weight"])
        limit = RELATIVE * largest + ROUNDING * np.abs(scale) * np.abs(columns).max(axis=1)
        shape = (values.shape[1], int(mine.sum()), values.shape[2])
        y[mine] = result.reshape(shape).transpose(1, 0, 2)
        allowed[mine] = np.broadcast_to(limit[:, None, None], shape).transpose(1, 0, 2)
    return y.reshape(x.shape), allowed.reshape(x.shape)
