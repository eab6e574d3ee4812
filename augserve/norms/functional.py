"""AugNorm's forward and backward as one differentiable function.

With s = x - mu, v = sigma^2 + eps, r = v^(-1/2), h_i = gamma dL/dy_i, A = sum h, B = sum h s over the m values:

    dL/dsigma^2 = -1/2 B r^3
    dL/ds_i     = h_i r + (2/m) s_i dL/dsigma^2
    dL/dmu      = -sum dL/ds = -(A r - (mean - mu) B r^3)
    dL/dx_i     = dL/ds_i + dL/dmu * dmu/dx_i
    dL/dgamma   = sum dL/dy s r,    dL/dbeta = sum dL/dy

Source: AugNorm, with the signs of its printed formulas corrected (checked against central differences).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augserve.norms.base import along_channels, reduced_dims
from augserve.norms.median.gradient import influence
from augserve.norms.median.solve import solve

# Width of the solver's bracket, in standard deviations, and its passes at most. Newton's last estimate is far
# closer than the bracket is wide; float64 is for checking gradients.
SOLVER = {torch.float32: (1e-5, 32), torch.float64: (1e-10, 64)}


def aug_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, phi: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x with its own center and spread.

    Args:
        x: (N, C, *spatial), a floating dtype.
        weight: gamma (C,) or None for 1.
        bias: beta (C,) or None for 0.
        phi: the exponent in [1, inf].
        eps: added to the variance.

    Returns:
        y (shape and dtype of x, differentiable), mu (C,) and the biased sigma^2 about mu (C,), both in float32
        or better and without gradient.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    compute = x.to(dtype)
    gamma = torch.ones(x.shape[1], device=x.device, dtype=dtype) if weight is None else weight.to(dtype)
    beta = torch.zeros_like(gamma) if bias is None else bias.to(dtype)
    y, mu, var = _AugNorm.apply(compute, gamma, beta, phi, eps)  # type: ignore[no-untyped-call]
    return y.to(x.dtype), mu, var


def center_and_variance(x: Tensor, phi: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return mu, the biased variance about mu, and the mean of x (N, C, *spatial), (C,) each, without gradient."""
    rows = x.transpose(0, 1).reshape(x.shape[1], -1)
    rtol, max_steps = SOLVER[x.dtype]
    result, moments = solve(rows, phi, rtol, max_steps)
    return result.value, moments.var + (moments.mean - result.value) ** 2, moments.mean


class _AugNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, phi: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mu, var, mean = center_and_variance(x, phi)
        r = torch.rsqrt(var + eps)
        scale = gamma * r
        y = torch.addcmul(along_channels(beta - mu * scale, x), x, along_channels(scale, x))
        ctx.save_for_backward(x, gamma, mu, mean, r)
        ctx.phi = phi
        ctx.mark_non_differentiable(mu, var)
        return y, mu, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, mu, mean, r = ctx.saved_tensors
        dy = grads[0]
        dims = reduced_dims(x)
        s = x - along_channels(mu, x)
        sum_dy = dy.sum(dim=dims)
        sum_dy_s = (dy * s).sum(dim=dims)
        d_var = -0.5 * gamma * sum_dy_s * r**3
        d_mu = -gamma * (sum_dy * r - (mean - mu) * sum_dy_s * r**3)
        d_x = influence(x, along_channels(mu, x), ctx.phi, dims).mul_(along_channels(d_mu, x))
        d_x.addcmul_(dy, along_channels(gamma * r, x))
        count = x.numel() // x.shape[1]
        d_x.addcmul_(s, along_channels(d_var * (2 / count), x))
        return d_x, sum_dy_s * r, sum_dy, None, None
