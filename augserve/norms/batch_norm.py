"""BatchNorm with explicit statistics: torch's layer, whose mode no longer hangs on `.training`.

    y = gamma (x - mean) / sqrt(var + eps) + beta

Source: Ioffe & Szegedy 2015, "Batch normalization"; names, buffers and conventions of torch.nn.BatchNorm.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from augserve.norms.base import StatisticsNorm
from augserve.norms.function import make_spec
from augserve.norms.kernels.spec import AUG, Spec
from augserve.norms.median.values import Values, moments
from augserve.norms.reduction import Local, Reduction


class BatchNorm(StatisticsNorm):
    """BatchNorm of any rank, (N, C, *spatial); see `BatchNorm1d`."""

    ndims: tuple[int, ...] = (2, 3, 4, 5)

    @override
    def group_statistics(self, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = over.mean(x)
        return mean.flatten(), over.mean((x - mean).square()).flatten()

    @override
    def statistics_over(self, values: Values) -> tuple[Tensor, Tensor]:
        return moments(values)

    @override
    def spec(self) -> Spec | None:
        return make_spec(AUG, 2.0, self.eps)

    @override
    def normalize_batch(self, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        other = self.weight is not None and self.weight.dtype != dtype
        if not self.kernels_know or not isinstance(over, Local) or other:
            return super().normalize_batch(x, over)
        # Momentum 1 leaves the batch's own statistics in the two buffers: one pass of torch's kernel for all.
        mean, var = torch.zeros((2, self.num_features), device=x.device, dtype=dtype)
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        count = x.numel() // self.num_features
        return y, mean, var * ((count - 1) / count)

    @override
    def operator(self) -> tuple[str, dict[str, float | int]]:
        return "BatchNorm", {"eps": self.eps}


class BatchNorm1d(BatchNorm):
    """Batch normalization of (N, C) or (N, C, L) with explicit statistics.

    y = gamma (x - mean) / sqrt(var + eps) + beta, with mean and biased var over N and L.

    Args: as torch.nn.BatchNorm1d. `set_statistics` and `use_statistics` choose the mode at inference: "tracked"
    (the default), "batch" or "blend". Without running statistics the mode is "batch".

    Raises:
        InputError: another number of dimensions or channels.
        StatisticsError: one value per channel where the batch's own statistics are asked for.

    Example:
        >>> layer = BatchNorm1d(3)
        >>> layer(torch.randn(8, 3)).shape
        torch.Size([8, 3])
    """

    ndims = (2, 3)


class BatchNorm2d(BatchNorm):
    """Batch normalization of images (N, C, H, W) with explicit statistics; see `BatchNorm1d`."""

    ndims = (4,)


class BatchNorm3d(BatchNorm):
    """Batch normalization of volumes (N, C, D, H, W) with explicit statistics; see `BatchNorm1d`."""

    ndims = (5,)
