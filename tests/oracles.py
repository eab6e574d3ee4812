"""Independent answers: slow, plain, float64, and sharing no code with what they check."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def generalized_median(values: Array, phi: float) -> float:
    """argmin_y sum |x - y|^phi by sorting or by 200 bisections of the sign of its derivative."""
    x = np.asarray(values, np.float64)
    if phi == 1:
        return float(np.median(x))
    if phi == 2:
        return float(x.mean())
    low, high = float(x.min()), float(x.max())
    if math.isinf(phi):
        return low / 2 + high / 2
    for _ in range(200):
        middle = low / 2 + high / 2
        d = middle - x
        reach = np.abs(d).max()
        slope = float((np.sign(d) * (np.abs(d) / reach) ** (phi - 1)).sum()) if reach > 0 else 0.0
        if slope == 0 or middle in (low, high):
            return middle
        low, high = (middle, high) if slope < 0 else (low, middle)
    return low / 2 + high / 2


def statistics(kind: str, x: Array, phi: float = 1.5, p: float = 0.2) -> tuple[Array, Array]:
    """Center and spread of each channel of x (N, C, ...)."""
    columns = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    if kind == "robust":
        return columns.mean(1), (columns.max(1) - columns.min(1)) ** p
    if kind == "batch":
        return columns.mean(1), columns.var(1)
    center = np.array([generalized_median(column, phi) for column in columns])
    return center, ((columns - center[:, None]) ** 2).mean(1)


def normalize(kind: str, x: Array, center: Array, spread: Array, eps: float = 1e-5) -> Array:
    """(x - center) / divisor, by channel."""
    divisor = spread + eps if kind == "robust" else np.sqrt(spread + eps)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return (x - center.reshape(shape)) / divisor.reshape(shape)
