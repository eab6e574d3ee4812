"""What the kernels compute, in plain torch: any device, any floating dtype.

The oracle of the fast paths, and what runs where there is none; computed in float32 or better. With
r = (sigma^2 + eps)^(-1/2), t = (x - mu) r, g = dL/dy, A = sum g and B = sum g t over the m values AugNorm has

    dL/dx_i   = gamma r (g_i - t_i B / m) + dL/dmu * dmu/dx_i
    dL/dmu    = -gamma r (A - (mean - mu) r B),    dL/dphi = dL/dmu * dmu/dphi
    dL/dgamma = B,    dL/dbeta = A

Written in t, whose size is 1, nothing overflows where sigma^2 does. RobustNorm's gradient is automatic.

Source: AugNorm, with the signs of its printed formulas corrected (checked against central differences).
"""

from __future__ import annotations

import torch
from torch import Tensor

from augserve import operators
from augserve.norms.kernels.spec import AUG, ROBUST, SPREADS, Groups, Spec
from augserve.norms.median.gradient import influence, sensitivity
from augserve.norms.median.operator import center_and_variance, median_along
from augserve.norms.reduction import Local, along_channels, reduced_dims


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    spec: Spec,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, center and spread (variance; max - min), all differentiable; arguments as `native.forward`."""
    center, measured = _measured(x, exponents, spec)
    return affine(x, weight, bias, center, _divisor(spread_of(measured, spec), spec)), center, measured


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, center: Tensor, divisor: Tensor) -> Tensor:
    """Return y = weight (x - center) / divisor + bias, computed in the dtype of the statistics (C,)."""
    scale = divisor.reciprocal() if weight is None else weight.to(divisor.dtype) / divisor
    # The center is subtracted first, so that a channel far from 0 keeps its digits.
    y = (x.to(center.dtype) - along_channels(center, x)) * along_channels(scale, x)
    return (y if bias is None else y + along_channels(bias.to(center.dtype), x)).to(x.dtype)


def power_of_range(extent: Tensor, p: float) -> Tensor:
    """Return extent^p, with gradient 0 where a channel is constant (extent 0) instead of inf."""
    constant = extent == 0
    return torch.where(constant, 0.0, torch.where(constant, 1.0, extent).pow(p))


@torch.no_grad()
def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    start: Tensor | None,
    spec: Spec,
) -> tuple[Tensor, Tensor]:
    """As `native.forward`, without gradient; `second` of AugNorm is 0, nothing here needs it."""
    wide, dims = x.to(torch.promote_types(x.dtype, torch.float32)), reduced_dims(x)
    if spec.kind != AUG:
        y, center, extent = normalize(x, weight, bias, exponents, spec)
        return y, torch.stack([center, extent, wide.amin(dim=dims), wide.amax(dim=dims)])
    begin = None if start is None else along_channels(start, x)
    found = median_along(wide, dims, _phi(x, exponents, spec), start=begin)
    mu = found.value
    first = found.mean - mu
    var = found.var + first**2
    scale = torch.rsqrt(var + spec.eps) * (1 if weight is None else along_channels(weight.to(wide.dtype), x))
    shift = wide.new_zeros(()) if bias is None else along_channels(bias.to(wide.dtype), x)
    y = torch.addcmul(shift, wide - mu, scale).to(x.dtype)
    return y, torch.stack([part.flatten() for part in (mu, var, first, torch.zeros_like(mu))])


@torch.no_grad()
def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, exponents: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor]:
    """As `native.backward`."""
    if spec.kind != AUG:
        channels = torch.ones(x.shape[1], device=x.device, dtype=statistics.dtype)
        given = (x, channels if weight is None else weight, channels, exponents)
        leaves = [None if part is None else part.detach().requires_grad_() for part in given]
        d_x, *rest = gradients(dy, leaves, spec)
        return d_x, torch.stack([channels * 0 if part is None else part.to(channels.dtype) for part in rest])
    dtype, over = statistics.dtype, Local(reduced_dims(x))
    mu, var, first = (along_channels(part, x) for part in statistics[:3])
    wide, dy = x.to(dtype), dy.to(dtype)
    r = torch.rsqrt(var + spec.eps)
    scale = r if weight is None else r * along_channels(weight.to(dtype), x)
    t = (wide - mu) * r
    sum_dy, sum_dy_t = over.sum(dy), over.sum(dy * t)
    d_mu = -scale * (sum_dy - (first * r) * sum_dy_t)
    phi = _phi(x, exponents, spec)
    d_x = influence(wide, mu, phi, over, d_mu, interior=True)
    d_x = d_x.addcmul_(dy, scale).addcmul_(t, scale * (sum_dy_t / -over.count(x)))
    d_phi = d_mu * sensitivity(wide, mu, phi, over) if isinstance(phi, Tensor) else torch.zeros_like(mu)
    return d_x.to(x.dtype), torch.stack([part.flatten() for part in (sum_dy_t, sum_dy, d_phi)])


def gradients(dy: Tensor, given: list[Tensor | None], spec: Spec, again: bool = False) -> list[Tensor]:
    """Return the gradients in x, weight, bias and exponents, None where one is not there.

    With `again` they are differentiable themselves, in dy and in all that is given.
    """
    x, weight, bias, exponents = given
    assert x is not None  # noqa: S101 - for the type checker
    with torch.enable_grad():
        y = normalize(x, weight, bias, exponents, spec)[0]
        wanted = [part for part in given if part is not None and part.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=again))
    return [next(found) if part is not None and part.requires_grad else None for part in given]  # type: ignore[misc]


@torch.no_grad()
def grouped(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    groups: Groups | None,
    tracked_weight: Tensor,
    spec: Spec,
) -> Tensor:
    """As `native.grouped`, without gradient."""
    y = torch.empty_like(x)
    every = torch.arange(x.shape[0], device=x.device)
    parts = [every] if groups is None else groups.order.tensor_split(groups.offsets[1:-1].cpu())
    for rows, share in zip(parts, tracked_weight, strict=True):
        center, spread = _blended(x[rows], exponents, running, share, spec)
        y[rows] = affine(x[rows], weight, bias, center, _divisor(spread, spec))
    return y


def _blended(
    x: Tensor, exponents: Tensor | None, running: tuple[Tensor, Tensor] | None, share: Tensor, spec: Spec
) -> tuple[Tensor, Tensor]:
    if running is not None and (share == 1 or x.shape[0] == 0):
        return running
    center, measured = _measured(x, exponents, spec)
    spread = spread_of(measured, spec)
    if running is None or share == 0:
        return center, spread
    return torch.lerp(center, running[0], share), torch.lerp(spread, running[1], share)


def _measured(x: Tensor, exponents: Tensor | None, spec: Spec) -> tuple[Tensor, Tensor]:
    """Return the center and what a kernel measures of the spread: the variance about it, or max - min."""
    wide, dims = x.to(torch.promote_types(x.dtype, torch.float32)), reduced_dims(x)
    if spec.kind == AUG:
        mu, var = center_and_variance(wide, dims, _phi(x, exponents, spec))
        return mu.flatten(), var.flatten()
    return wide.mean(dim=dims), wide.amax(dim=dims) - wide.amin(dim=dims)


def _phi(x: Tensor, exponents: Tensor | None, spec: Spec) -> float | Tensor:
    if exponents is None:
        return spec.exponent
    return along_channels(exponents, x).to(torch.promote_types(x.dtype, torch.float32))


def spread_of(measured: Tensor, spec: Spec) -> Tensor:
    """Return the spread that a kernel measured, (C,), as divisors and running statistics take it."""
    return power_of_range(measured, spec.exponent) if spec.kind == ROBUST else measured


def _divisor(spread: Tensor, spec: Spec) -> Tensor:
    attributes = {"eps": spec.eps, "p": spec.exponent}
    return operators.divisor(spread, SPREADS[spec.kind], attributes, root=torch.sqrt, power=power_of_range)
