"""What the tests of the native kernels share: norms, shapes, data, and the answers of float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from augserve.norms import library
from augserve.norms.kernels import reference
from augserve.norms.kernels.spec import AUG, ROBUST, ROBUST_RANGE, Spec
from augserve.norms.reduction import along_channels, reduced_dims

NEEDS_LIBRARY = pytest.mark.skipif(library.LIBRARY is None, reason="no native library: it needs a C++ compiler")

NORMS = {
    "batch": Spec(AUG, 2.0, 1e-5, 1e-5, 32),
    "aug-1.1": Spec(AUG, 1.1, 1e-5, 1e-5, 32),
    "aug-1.5": Spec(AUG, 1.5, 1e-5, 1e-5, 32),
    "aug-1.75": Spec(AUG, 1.75, 1e-5, 1e-5, 32),
    "aug-3": Spec(AUG, 3.0, 1e-5, 1e-5, 32),
    "aug-9": Spec(AUG, 9.0, 1e-5, 1e-5, 32),
    "robust": Spec(ROBUST, 0.2, 1e-5, 1e-5, 32),
    "robust-range": Spec(ROBUST_RANGE, 0.2, 1e-5, 1e-5, 32),
}
SHAPES = ((64, 3), (7, 5, 9), (33, 4, 4, 4), (8, 3, 16, 17), (2, 2, 40, 40), (3, 2, 2, 3, 5))


def data(shape: tuple[int, ...], seed: int = 0, zeros: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 2 + 1
    return torch.where(torch.rand(shape, generator=generator) < zeros, 0.0, x)


def parameters(channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(channels, generator=generator) + 1, torch.randn(channels, generator=generator)


def exact(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, spec: Spec, exponents: Tensor | None = None) -> Any:
    """Forward and gradients in float64, by plain torch and automatic differentiation."""
    given = [x.double(), weight.double(), bias.double(), None if exponents is None else exponents.double()]
    leaves = [None if part is None else part.detach().requires_grad_() for part in given]
    y, center, spread = reference.normalize(*leaves, spec)
    wanted = [part for part in leaves if part is not None]
    return y.detach(), center.detach(), spread.detach(), torch.autograd.grad(y, wanted, dy.double())


def gradients_at(
    x: Tensor, dy: Tensor, weight: Tensor, mu: Tensor, phi: float | Tensor, eps: float
) -> tuple[Tensor, ...]:
    """AugNorm's gradients by their formulas in float64, at the median that a kernel found.

    The weight of a value beside the median is as good as the median: with another one's rounding it is another.
    """
    x, dy, dims = x.double(), dy.double(), reduced_dims(x)
    mu, gamma = along_channels(mu.double(), x), along_channels(weight.double(), x)
    phi = along_channels(phi.double(), x) if isinstance(phi, Tensor) else phi
    s = x - mu
    r = (s.square().mean(dim=dims, keepdim=True) + eps).rsqrt()
    t, sum_dy = s * r, dy.sum(dim=dims, keepdim=True)
    sum_dy_t = (dy * t).sum(dim=dims, keepdim=True)
    d_mu = -gamma * r * (sum_dy - t.mean(dim=dims, keepdim=True) * sum_dy_t)
    a = s.abs().clamp_min(1e-14)
    w = a.pow(phi - 2)
    total = w.sum(dim=dims, keepdim=True)
    dx = gamma * r * (dy - t * t.mul(dy).mean(dim=dims, keepdim=True)) + d_mu * w / total
    # Whatever the unit of a, the slope is the same where w s has the sum 0: exactly at the median. Beside a value a
    # kernel's median misses that; the unit is the largest a, as in `augserve.norms.median.gradient`.
    reach = a.amax(dim=dims, keepdim=True)
    slope = (w * s * (a / reach).log()).sum(dim=dims, keepdim=True) / ((phi - 1) * total)
    return dx, sum_dy_t.flatten(), sum_dy.flatten(), (d_mu * slope).flatten()


def near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Equal up to `tolerance` of the largest number."""
    scale = max(float(theirs.abs().max()), 1e-30)
    torch.testing.assert_close(ours.double() / scale, theirs / scale, atol=tolerance, rtol=0)
