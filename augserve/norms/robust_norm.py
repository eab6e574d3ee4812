"""RobustNorm: batch normalization by a power of the range instead of the standard deviation.

    y = gamma (x - mean) / ((max - min)^p + eps) + beta

Not scale invariant: the output of a channel grows like scale^(1 - p). Source: RobustNorm, with p = 0.2; the
running statistic is that of the denominator (max - min)^p, as the paper says; track="range" averages the range
and raises it to p at use, as the published code does.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from augserve.errors import ConfigurationError, unknown_choice
from augserve.norms.base import StatisticsNorm
from augserve.norms.function import make_spec
from augserve.norms.kernels.reference import power_of_range
from augserve.norms.kernels.spec import ROBUST, ROBUST_RANGE, Spec
from augserve.norms.median.values import Values, moments
from augserve.norms.reduction import Reduction

Track = Literal["denominator", "range"]


class RobustNorm(StatisticsNorm):
    """RobustNorm of any rank, (N, C, *spatial); see `RobustNorm1d`."""

    ndims: tuple[int, ...] = (2, 3, 4, 5)

    def __init__(
        self,
        num_features: int,
        p: float = 0.2,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = False,
        *,
        track: Track = "denominator",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 < p < math.inf:
            raise ConfigurationError(f"p must be positive and finite; got {p}")
        if track not in ("denominator", "range"):
            raise unknown_choice("tracked spread", track, ("denominator", "range"))
        self.p = float(p)
        self.track = track
        self.spread = f"running_{track}"
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)

    @override
    def group_statistics(self, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        extent = (over.amax(x) - over.amin(x)).flatten()
        return over.mean(x).flatten(), self._spread_of(extent)

    @override
    def statistics_over(self, values: Values) -> tuple[Tensor, Tensor]:
        low, high = values.extremes()
        extent = high - low
        return moments(values)[0], self._spread_of(extent)

    @override
    def spec(self) -> Spec | None:
        return make_spec(ROBUST_RANGE if self.track == "range" else ROBUST, self.p, self.eps)

    def _spread_of(self, extent: Tensor) -> Tensor:
        return extent if self.track == "range" else power_of_range(extent, self.p)

    @override
    def operator(self) -> tuple[str, dict[str, float | int]]:
        name = "RobustNorm" if self.track == "denominator" else "RobustRangeNorm"
        return name, {"p": self.p, "eps": self.eps}

    def _own_options(self) -> dict[str, Any]:
        return {"p": self.p, "track": self.track}


class RobustNorm1d(RobustNorm):
    """RobustNorm of (N, C) or (N, C, L).

    y = gamma (x - mean) / ((max - min)^p + eps) + beta, each over N and L.

    Args:
        num_features: C.
        p: the power of the range, positive.
        eps: added to the denominator.
        momentum: weight of the newest batch in the running statistics; None averages all batches evenly.
        affine: learn gamma (weight) and beta (bias), each (C,).
        track_running_stats: keep running_mean and running_denominator (or running_range), each (C,).
        track: the running spread: "denominator" averages (max - min)^p, "range" averages max - min.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Raises:
        ConfigurationError: p not positive, or an unknown `track`.
        InputError: another number of dimensions or channels.
        StatisticsError: one value per channel where the batch's own statistics are asked for.

    Reference: RobustNorm.

    Example:
        >>> layer = RobustNorm1d(3)
        >>> layer(torch.randn(8, 3)).shape
        torch.Size([8, 3])
    """

    ndims = (2, 3)


class RobustNorm2d(RobustNorm):
    """RobustNorm of images (N, C, H, W), statistics over N, H and W; see `RobustNorm1d`."""

    ndims = (4,)


class RobustNorm3d(RobustNorm):
    """RobustNorm of volumes (N, C, D, H, W), statistics over N, D, H and W; see `RobustNorm1d`."""

    ndims = (5,)
