"""AugNorm's forward and backward as one differentiable function: the core of all its layers.

With r = (sigma^2 + eps)^(-1/2), t = (x - mu) r, g = dL/dy, A = sum g and B = sum g t over the m values:

    dL/dx_i   = gamma r (g_i - t_i B / m) + dL/dmu * dmu/dx_i
    dL/dmu    = -gamma r (A - (mean - mu) r B),    dL/dphi = dL/dmu * dmu/dphi
    dL/dgamma = B,    dL/dbeta = A

Written in t, whose size is 1, nothing overflows where sigma^2 does.

Source: AugNorm, with the signs of its printed formulas corrected (checked against central differences).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augserve.norms.median.gradient import influence, sensitivity
from augserve.norms.median.operator import Solution, median_of_rows
from augserve.norms.reduction import Local, as_rows

# Width of the solver's bracket, in standard deviations, and its passes at most. Newton's last estimate is far
# closer than the bracket is wide; float64 is for checking gradients.
CALIBRATION = (1e-9, 64)  # over a data set, in float64
SOLVER = {torch.float32: (1e-5, 32), torch.float64: (1e-12, 64)}


def aug_norm(
    x: Tensor,
    dims: tuple[int, ...],
    phi: float | Tensor,
    eps: float,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x with its own center and spread: y = gamma (x - mu) / sqrt(sigma^2 + eps) + beta.

    A statistic has the shape of x with size 1 in `dims`; weight, bias, phi and start broadcast to it.

    Args:
        x: any shape, a floating dtype.
        dims: the dimensions that are normalized together.
        phi: the exponent in [1, inf]; a tensor must lie in (1, inf).
        eps: added to the variance.
        weight: gamma, None for 1.
        bias: beta, None for 0.
        start: where the solver begins, None for the mean.

    Returns:
        y (shape and dtype of x, differentiable), mu and the biased sigma^2 about mu, both statistics in float32 or
        better and without gradient.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    one = torch.ones((), device=x.device, dtype=dtype)
    gamma = one if weight is None else weight.to(dtype)
    beta = one * 0 if bias is None else bias.to(dtype)
    exponents = phi.to(dtype) if isinstance(phi, Tensor) else None
    exponent = 0.0 if isinstance(phi, Tensor) else phi
    y, mu, var, _ = _AugNorm.apply(x.to(dtype), gamma, beta, exponents, start, exponent, eps, dims)  # type: ignore[no-untyped-call]
    return y.to(x.dtype), mu, var


def center_and_variance(x: Tensor, dims: tuple[int, ...], phi: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return mu and the biased variance about mu, statistics of x (float32 or float64), both differentiable."""
    mu = _median(x, dims, phi).value
    return mu, (x - mu).square().mean(dim=dims, keepdim=True)


def _median(x: Tensor, dims: tuple[int, ...], phi: float | Tensor, start: Tensor | None = None) -> Solution:
    """Return the median and its company as statistics of x; exponents of a tensor lie in (1, inf)."""
    shape = [1 if d in dims else size for d, size in enumerate(x.shape)]

    def each(values: Tensor) -> Tensor:
        return values.to(x.dtype).expand(shape).reshape(-1, 1)

    exponent = each(phi) if isinstance(phi, Tensor) else phi
    begin = None if start is None else each(start)
    solution = median_of_rows(as_rows(x, dims), exponent, *SOLVER[x.dtype], start=begin, interior=True)
    return Solution(*(part.reshape(shape) for part in solution))


class _AugNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        exponents: Tensor | None,
        start: Tensor | None,
        phi: float,
        eps: float,
        dims: tuple[int, ...],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = _median(x, dims, phi if exponents is None else exponents, start)
        mu, mean = found.value, found.mean
        var = found.var + (mean - mu) ** 2
        # mu is subtracted first, so that a channel far from 0 keeps its digits.
        return torch.addcmul(beta, x - mu, gamma * torch.rsqrt(var + eps)), mu, var, mean

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gamma, beta, exponents, _, ctx.phi, ctx.eps, ctx.dims = inputs
        _, mu, var, mean = output
        ctx.save_for_backward(x, gamma, exponents, mu, var, mean)
        ctx.beta_shape = beta.shape
        ctx.mark_non_differentiable(mu, var, mean)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, exponents, mu, var, mean = ctx.saved_tensors
        phi = ctx.phi if exponents is None else exponents
        reduction = Local(ctx.dims)
        if torch.is_grad_enabled():  # a second derivative is wanted: the statistics depend on x
            mu = _median(x, ctx.dims, phi, start=mu).value
            var, mean = reduction.mean((x - mu).square()), reduction.mean(x)
        r = torch.rsqrt(var + ctx.eps)
        dy, t = grads[0], (x - mu) * r
        sum_dy, sum_dy_t = reduction.sum(dy), reduction.sum(dy * t)
        scale = gamma * r
        d_mu = -scale * (sum_dy - ((mean - mu) * r) * sum_dy_t)
        d_x = influence(x, mu, phi, reduction, d_mu, interior=True)
        add = torch.addcmul if torch.is_grad_enabled() else Tensor.addcmul_
        d_x = add(add(d_x, dy, scale), t, scale * (sum_dy_t / -reduction.count(x)))
        d_phi = None
        if exponents is not None:
            each = exponents.expand_as(mu)
            d_phi = (d_mu * sensitivity(x, mu, each, reduction)).sum_to_size(exponents.shape)
        d_gamma = sum_dy_t.sum_to_size(gamma.shape)
        return d_x, d_gamma, sum_dy.sum_to_size(ctx.beta_shape), d_phi, None, None, None, None
