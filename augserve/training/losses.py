"""Losses of a batch that weigh its worst rows: CVaR and chi-square DRO, and DORO, which drops the outliers first.

Each is a worst case over reweightings q of the batch, a sum of q_i l_i, so its gradient is q (envelope theorem):

    CVaR_alpha   q_i <= p_i / alpha: the mean of the worst fraction alpha
    chi-square   sum_i (q_i / p_i - 1)^2 p_i <= 2 rho = (1 / alpha - 1)^2
    DORO         the same, with p uniform on what is left once the largest fraction epsilon is dropped; else on all

Ranks count from the largest loss; of tied losses the earlier row ranks higher.

Source: Zhai et al. 2021, "DORO: Distributional and Outlier Robust Optimization", with the level alpha of
Hashimoto et al. 2018, "Fairness without demographics in repeated loss minimization".
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from augserve.errors import ConfigurationError, InputError, unknown_choice

Quantile = Literal["fractional", "truncated"]

SLACK = 1e-9  # of a row: what epsilon * B and alpha * B may be off by in floating point
VERTEX = 1e-15  # an alpha below it gives the largest loss in any batch


def cvar(losses: Tensor, alpha: float, *, quantile: Quantile = "fractional") -> Tensor:
    """Return the conditional value at risk of the losses: the mean of the worst fraction alpha.

        CVaR_alpha = 1 / (alpha B) * (l_(1) + ... + l_(n) + (alpha B - n) l_(n+1)),   n = floor(alpha B)

    with l_(1) >= l_(2) >= ...; alpha = 1 is the mean, alpha <= 1/B the largest loss.

    Args:
        losses: (B,), any floating dtype; one loss a row.
        alpha: the fraction of the batch that counts, in (0, 1].
        quantile: "fractional" weighs the row on the boundary by its part; "truncated" is the mean of the
            int(alpha B) largest, as the published code has it.

    Returns:
        A scalar of the losses' dtype (float32 for float16 and bfloat16), differentiable once. A NaN among the
        losses gives NaN.

    Raises:
        InputError: losses that are empty, not (B,) or not floating.
        ConfigurationError: alpha outside (0, 1], an unknown `quantile`, or truncated with alpha B < 1.

    Reference: Rockafellar and Uryasev 2000, "Optimization of conditional value-at-risk".

    Example:
        >>> cvar(torch.tensor([1.0, 4.0, 2.0, 3.0]), alpha=0.5).item()
        3.5
    """
    losses = _checked(losses, alpha, 0.0, quantile)
    first, weights = _band(losses, 0.0, alpha, quantile)
    return _weighted_sum(_ranked(losses), first, weights / weights.sum())


def chi_square(losses: Tensor, alpha: float) -> Tensor:
    """Return the largest mean of the losses over a chi-square ball around the uniform weights.

        sup over q:   sum_i q_i l_i    with    1/B sum_i (B q_i - 1)^2 <= 2 rho = (1 / alpha - 1)^2
        = min over eta:   sqrt(2 rho + 1) sqrt(mean(relu(l - eta)^2)) + eta

    solved exactly, by sorting. Where the ball holds all the weight on one row (small alpha), this is the largest
    loss; its gradient is shared evenly among the rows that tie for it.

    Args:
        losses: (B,), any floating dtype; one loss a row.
        alpha: the size of the smallest subpopulation to guard, in (0, 1]; 1 is the mean.

    Returns:
        A scalar of the losses' dtype (float32 for float16 and bfloat16), differentiable once. A loss that
        is NaN or infinite gives NaN.

    Raises:
        InputError: losses that are empty, not (B,) or not floating.
        ConfigurationError: alpha outside (0, 1].

    Reference: Hashimoto et al. 2018; Duchi and Namkoong 2021, "Learning models with uniform performance via
    distributionally robust optimization".

    Example:
        >>> round(chi_square(torch.tensor([0.0, 0.0, 1.0, 1.0]), alpha=0.75).item(), 4)
        0.6667
    """
    return chi_square_doro(losses, alpha, 0.0)


def cvar_doro(losses: Tensor, alpha: float, epsilon: float, *, quantile: Quantile = "fractional") -> Tensor:
    """Return the CVaR of what is left once the largest fraction epsilon of the losses is dropped.

        CVaR_alpha of the ranks epsilon B to B = the mean of the ranks epsilon B to gamma B,
        gamma = epsilon + alpha (1 - epsilon)

    Args:
        losses: (B,), any floating dtype; one loss a row.
        alpha: the fraction of the remaining rows that counts, in (0, 1].
        epsilon: the fraction of the batch taken for outliers, in [0, 1); 0 is `cvar`.
        quantile: "fractional" weighs the rows on both boundaries by their part; "truncated" sums the ranks
            n = int(epsilon B) to int(gamma B) and divides by alpha (B - n), as the published code has it: its
            weights need not sum to 1, even for epsilon = 0.

    Returns:
        A scalar of the losses' dtype (float32 for float16 and bfloat16), differentiable once. A NaN among the
        losses, dropped or not, gives NaN.

    Raises:
        InputError: losses that are empty, not (B,) or not floating.
        ConfigurationError: alpha outside (0, 1], epsilon outside [0, 1), an unknown `quantile`, or truncated
            where no row is left.

    Reference: Zhai et al. 2021, DORO.

    Example:
        >>> cvar_doro(torch.tensor([1.0, 100.0, 2.0, 3.0, 4.0]), alpha=0.5, epsilon=0.2).item()
        3.5
    """
    losses = _checked(losses, alpha, epsilon, quantile)
    first, weights = _band(losses, epsilon, epsilon + alpha * (1 - epsilon), quantile)
    total = weights.sum() if quantile == "fractional" else alpha * (len(losses) - first)
    return _weighted_sum(_ranked(losses), first, weights / total)


def chi_square_doro(losses: Tensor, alpha: float, epsilon: float, *, quantile: Quantile = "fractional") -> Tensor:
    """Return the chi-square loss of what is left once the largest fraction epsilon of the losses is dropped.

    The equation is that of `chi_square`, with p uniform over the ranks epsilon B to B in place of 1/B.

    Args:
        losses: (B,), any floating dtype; one loss a row.
        alpha: the size of the smallest subpopulation to guard, as a fraction of the remaining rows, in (0, 1].
        epsilon: the fraction of the batch taken for outliers, in [0, 1); 0 is `chi_square`.
        quantile: "fractional" keeps a part of the row on the boundary; "truncated" drops int(epsilon B) rows, as
            the published code does.

    Returns:
        A scalar of the losses' dtype (float32 for float16 and bfloat16), differentiable once. A NaN among the
        losses, dropped or not, gives NaN, and so does an infinite loss that is kept.

    Raises:
        InputError: losses that are empty, not (B,) or not floating.
        ConfigurationError: alpha outside (0, 1], epsilon outside [0, 1), or an unknown `quantile`.

    Reference: Zhai et al. 2021, DORO.

    Example:
        >>> round(chi_square_doro(torch.tensor([0.0, 0.0, 1.0, 1.0, 100.0]), alpha=0.75, epsilon=0.2).item(), 4)
        0.6667
    """
    losses = _checked(losses, alpha, epsilon, quantile)
    first, masses = _band(losses, epsilon, 1.0, quantile)
    ranked = _ranked(losses)
    weights = _chi_square_weights(ranked[first:].detach().double(), masses / masses.sum(), alpha)
    return _weighted_sum(ranked, first, weights)


def _chi_square_weights(ranked: Tensor, masses: Tensor, alpha: float) -> Tensor:
    """Return the worst weights in the chi-square ball around `masses` for losses in descending order, both (n,).

    The rows above the dual's minimiser eta are the active ones. With their mass M, mean m and variance V,

        eta = m - sqrt(V / (M (1 + 2 rho) - 1)),    q_i = p_i (l_i - eta) / (M (m - eta)),

    and a row is active unless the dual's derivative at eta = l_i is <= 0. All of it is in gaps from the largest
    loss, so that a constant added to the losses costs no digits.
    """
    two_rho = (1 / max(alpha, VERTEX) - 1) ** 2
    gap = ranked[0] - ranked
    mass = masses.cumsum(0)
    gap_sum = (masses * gap).cumsum(0)
    above = gap * mass - gap_sum  # sum of p relu(l - eta) at eta = l_i
    above_squared = gap * (gap * mass - 2 * gap_sum) + (masses * gap**2).cumsum(0)
    inactive = ((gap > 0) & (above_squared <= (1 + two_rho) * above**2)).cumsum(0) > 0

    p = masses.masked_fill(inactive, 0.0)
    left_out = masses.masked_fill(~inactive, 0.0).sum()  # 1 - M, exactly 0 where every row is active
    mean = (p * gap).sum() / p.sum()
    variance = (p * (gap - mean) ** 2).sum() / p.sum()
    excess = (two_rho * (1 - left_out) - left_out).clamp(min=0.0)
    slope = torch.where(variance > 0, excess / variance, 0.0).sqrt()  # 1 / (m - eta); all active rows tie: any
    weights = p * (1 + (mean - gap) * slope).clamp(min=0.0)
    return weights / weights.sum()


def _band(losses: Tensor, start: float, stop: float, quantile: Quantile) -> tuple[int, Tensor]:
    """Return the first rank and the weights, in rows, of the ranks between two fractions of the batch."""
    rows = len(losses)
    low, high = start * rows, stop * rows
    if quantile == "truncated":
        if int(high) <= int(low):
            raise ConfigurationError(
                f"no row is left of {rows} between the fractions {start:g} and {stop:g}; "
                "take more rows a batch, a larger alpha, or quantile='fractional'"
            )
        return int(low), torch.ones(int(high) - int(low), dtype=torch.float64, device=losses.device)
    first = min(int(low + SLACK), rows - 1)
    last = min(max(math.ceil(high - SLACK), first + 1), rows)
    rank = torch.arange(first, last, dtype=torch.float64, device=losses.device)
    return first, ((rank + 1).clamp(max=high) - rank.clamp(min=low)).clamp(min=SLACK)


def _ranked(losses: Tensor) -> Tensor:
    """Return the losses in descending order, NaN first; of ties the earlier row."""
    return losses.sort(descending=True, stable=True).values


def _weighted_sum(ranked: Tensor, first: int, weights: Tensor) -> Tensor:
    """Sum the ranks from `first` on by the weights (n,); a rank without a weight may be infinite, but not NaN."""
    total = (ranked[first : first + len(weights)] * weights.to(ranked.dtype)).sum()
    return torch.where(ranked[0].detach().isnan(), torch.nan, total)


def _checked(losses: Tensor, alpha: float, epsilon: float, quantile: str) -> Tensor:
    if not losses.is_floating_point() or losses.ndim != 1 or len(losses) == 0:
        came = f"{losses.dtype} of shape {tuple(losses.shape)}"
        raise InputError(f"expected one floating loss a row, (B,) with B > 0; got {came}; use reduction='none'")
    if not 0 < alpha <= 1:
        raise ConfigurationError(f"alpha must be in (0, 1]; got {alpha}")
    if not 0 <= epsilon < 1:
        raise ConfigurationError(f"epsilon must be in [0, 1); got {epsilon}")
    if quantile not in get_args(Quantile):
        raise unknown_choice("quantile", quantile, get_args(Quantile))
    return losses.to(torch.promote_types(losses.dtype, torch.float32))
