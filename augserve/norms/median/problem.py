"""The generalized geometric median (GGM): its definition, never optimised.

    mu(x, phi) = argmin_y sum_i |x_i - y|^phi,    phi in [1, inf]

phi = 1 is the median (the midpoint of the two middle values), phi = 2 the mean, phi = inf the midrange. Between,
mu is the root of the increasing function g(y) = sum_i sgn(y - x_i) |x_i - y|^(phi - 1).

Source: AugNorm, section on the generalized geometric median. Everything fast is tested against this file.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from augserve.errors import ConfigurationError


def check_phi(phi: float) -> float:
    """Return phi as a float, or raise ConfigurationError where it lies outside [1, inf]."""
    try:
        value = float(phi)
    except (TypeError, ValueError):
        value = math.nan
    if not value >= 1:  # also catches NaN
        raise ConfigurationError(f"phi must lie in [1, inf]: 1 median, 2 mean, inf midrange; got {phi}")
    return value


def largest_phi(dtype: torch.dtype) -> float:
    """Return the exponent beyond which the GGM is the midrange up to rounding, and powers of it lose all digits."""
    return 1e9 if dtype == torch.float32 else 1e15


def objective(rows: Tensor, y: Tensor, phi: float) -> Tensor:
    """Return sum_i |x_i - y|^phi by row, (R,); rows (R, m), y (R,), phi finite."""
    return (rows - y[:, None]).abs().pow(phi).sum(dim=1)


def residual(rows: Tensor, y: Tensor, phi: float) -> Tensor:
    """Return g(y) = sum_i sgn(y - x_i) |x_i - y|^(phi - 1) by row, (R,); rows (R, m), y (R,), phi finite."""
    d = y[:, None] - rows
    return (torch.sign(d) * d.abs().pow(phi - 1)).sum(dim=1)


def reference(rows: Tensor, phi: float, halvings: int = 100) -> Tensor:
    """Return the GGM by row, (R,): in closed form for phi = 1, 2 and inf, else by bisection of the residual's sign.

    rows (R, m), finite, of moderate size; use float64 where the answer is to judge another one.
    """
    low, high = rows.amin(dim=1), rows.amax(dim=1)
    if phi == 1:
        ordered, m = rows.sort(dim=1).values, rows.shape[1]
        return ordered[:, (m - 1) // 2] / 2 + ordered[:, m // 2] / 2
    if phi == 2:
        return rows.mean(dim=1)
    if math.isinf(phi):
        return low / 2 + high / 2
    reach = (high - low).where(high > low, torch.ones_like(low))  # residuals of reduced values cannot overflow
    for _ in range(halvings):
        middle = low / 2 + high / 2
        g = residual(rows / reach[:, None], middle / reach, phi)
        low, high = torch.where(g < 0, middle, low), torch.where(g < 0, high, middle)
    return low / 2 + high / 2
