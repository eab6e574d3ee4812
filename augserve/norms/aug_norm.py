"""AugNorm: batch normalization around a generalized geometric median instead of the mean.

    mu = argmin_y sum_i |x_i - y|^phi,    sigma^2 = (1/m) sum_i (x_i - mu)^2
    y = gamma (x - mu) / sqrt(sigma^2 + eps) + beta

phi = 2 is batch normalization, phi = 1 median normalization. Source: AugNorm; running statistics, momentum and
names follow torch.nn.BatchNorm, so that its checkpoints load (running_mean holds mu).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from augserve.norms.base import StatisticsNorm, along_channels, reduced_dims
from augserve.norms.functional import SOLVER, aug_norm
from augserve.norms.median import generalized_median
from augserve.norms.median.problem import check_phi


class _AugNorm(StatisticsNorm):
    def __init__(
        self,
        num_features: int,
        phi: float = 1.5,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.phi = check_phi(phi)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)

    def group_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        rtol, max_steps = SOLVER[x.dtype]
        dims = reduced_dims(x)
        mu = generalized_median(x, self.phi, dims, rtol=rtol, max_steps=max_steps).value
        return mu, (x - along_channels(mu, x)).square().mean(dim=dims)

    def divisor(self, spread: Tensor) -> Tensor:
        return torch.sqrt(spread + self.eps)

    def unbiased(self, spread: Tensor, count: int) -> Tensor:
        return spread * (count / (count - 1))

    def normalize_batch(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return aug_norm(x, self.weight, self.bias, self.phi, self.eps)

    def operator(self) -> tuple[str, dict[str, float | int]]:
        if self.phi == 2:
            return "BatchNorm", {"eps": self.eps}
        if self.phi == 1:
            return "MedianNorm", {"eps": self.eps}
        if math.isinf(self.phi):
            return "MidrangeNorm", {"eps": self.eps}
        rtol, max_steps = SOLVER[torch.float32]
        return "AugNorm" if self.phi < 2 else "AugNormAbove2", {
            "phi": self.phi,
            "eps": self.eps,
            "rtol": rtol,
            "max_steps": max_steps,
        }

    def _own_options(self) -> dict[str, Any]:
        return {"phi": self.phi}


class AugNorm1d(_AugNorm):
    """AugNorm of (N, C) or (N, C, L).

    mu = argmin_y sum |x - y|^phi over N and L; y = gamma (x - mu) / sqrt(mean((x - mu)^2) + eps) + beta.

    Args:
        num_features: C.
        phi: exponent in [1, inf]: 1 median, 2 mean (then it is BatchNorm1d), inf midrange.
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics; None averages all batches evenly.
        affine: learn gamma (weight) and beta (bias), each (C,).
        track_running_stats: keep running_mean (mu) and running_var (unbiased), each (C,).
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Raises:
        ConfigurationError: phi outside [1, inf].
        InputError: another number of dimensions or channels.
        StatisticsError: one value per channel where the batch's own statistics are asked for.

    Reference: AugNorm; the solver is described in `augserve.norms.median.solve`.

    Example:
        >>> layer = AugNorm1d(3, phi=1.5)
        >>> layer(torch.randn(8, 3)).shape
        torch.Size([8, 3])
    """

    ndims = (2, 3)


class AugNorm2d(_AugNorm):
    """AugNorm of images (N, C, H, W), statistics over N, H and W; see `AugNorm1d`."""

    ndims = (4,)


class AugNorm3d(_AugNorm):
    """AugNorm of volumes (N, C, D, H, W), statistics over N, D, H and W; see `AugNorm1d`."""

    ndims = (5,)
