"""What the kernels compute, in plain torch: any device, any floating dtype, differentiable.

The oracle of the fast paths, and what runs where there is none. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from augserve.norms.functional import aug_norm, center_and_variance
from augserve.norms.kernels.spec import AUG, ROBUST, Groups, Spec
from augserve.norms.reduction import along_channels, reduced_dims


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    spec: Spec,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (differentiable), center and spread (variance; max - min); arguments as `native.forward`."""
    if spec.kind == AUG:
        weight, bias, start, exponents = (
            None if part is None else along_channels(part, x) for part in (weight, bias, start, exponents)
        )
        phi = spec.exponent if exponents is None else exponents
        y, mu, var = aug_norm(x, reduced_dims(x), phi, spec.eps, weight=weight, bias=bias, start=start)
        return y, mu.flatten(), var.flatten()
    wide, dims = x.to(torch.promote_types(x.dtype, torch.float32)), reduced_dims(x)
    center, extent = wide.mean(dim=dims), wide.amax(dim=dims) - wide.amin(dim=dims)
    return affine(x, weight, bias, center, power_of_range(extent, spec.exponent) + spec.eps), center, extent


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, center: Tensor, divisor: Tensor) -> Tensor:
    """Return y = weight (x - center) / divisor + bias, computed in the dtype of the statistics (C,)."""
    scale = divisor.reciprocal() if weight is None else weight.to(divisor.dtype) / divisor
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
    """As `native.forward`, without gradient."""
    y, center, spread = normalize(x, weight, bias, exponents, spec, start)
    wide, dims = x.to(center.dtype), reduced_dims(x)
    low, high = wide.amin(dim=dims), wide.amax(dim=dims)
    if spec.kind == AUG:
        low, high = wide.mean(dim=dims) - center, torch.maximum(high - center, center - low)
    return y, torch.stack([center, spread, low, high])


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, exponents: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor]:
    """As `native.backward`, by automatic differentiation."""
    channels, dtype = x.shape[1], statistics.dtype
    weight = torch.ones(channels, device=x.device, dtype=dtype) if weight is None else weight
    bias = torch.zeros(channels, device=x.device, dtype=dtype)
    given = [None if part is None else part.detach().requires_grad_() for part in (x, weight, bias, exponents)]
    d_x, *rest = gradients(dy, given, spec)
    zero = torch.zeros_like(bias)
    return d_x, torch.stack([zero if part is None else part.to(dtype) for part in rest])


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
    wide, dims = x.to(torch.promote_types(x.dtype, torch.float32)), reduced_dims(x)
    if spec.kind == AUG:
        phi = spec.exponent if exponents is None else along_channels(exponents, x)
        center, spread = (part.flatten() for part in center_and_variance(wide, dims, phi))
    else:
        center, spread = wide.mean(dim=dims), wide.amax(dim=dims) - wide.amin(dim=dims)
        spread = power_of_range(spread, spec.exponent) if spec.kind == ROBUST else spread
    if running is None or share == 0:
        return center, spread
    return torch.lerp(center, running[0], share), torch.lerp(spread, running[1], share)


def _divisor(spread: Tensor, spec: Spec) -> Tensor:
    if spec.kind == AUG:
        return torch.sqrt(spread + spec.eps)
    return (spread if spec.kind == ROBUST else power_of_range(spread, spec.exponent)) + spec.eps
