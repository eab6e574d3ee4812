"""AugNorm: batch normalization around a generalized geometric median instead of the mean.

    mu = argmin_y sum_i |x_i - y|^phi,    sigma^2 = (1/m) sum_i (x_i - mu)^2
    y = gamma (x - mu) / sqrt(sigma^2 + eps) + beta

phi = 2 is batch normalization, phi = 1 median normalization. Source: AugNorm; running statistics, momentum and
names follow torch.nn.BatchNorm, so that its checkpoints load (running_mean holds mu).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from augserve.norms.base import StatisticsNorm
from augserve.norms.exponent import HasExponent
from augserve.norms.function import make_spec
from augserve.norms.kernels.spec import AUG, Spec
from augserve.norms.median.operator import CALIBRATION, SOLVER, center_and_variance
from augserve.norms.median.problem import largest_phi
from augserve.norms.median.solve import solve
from augserve.norms.median.values import Values
from augserve.norms.processes import Processes
from augserve.norms.reduction import Reduction, along_channels, reduced_dims

PHI_OF_CHANNELS = 1.5  # stands in a Spec whose channels have exponents of their own


class AugNorm(HasExponent, StatisticsNorm):
    """AugNorm of any rank, (N, C, *spatial); see `AugNorm1d`."""

    ndims: tuple[int, ...] = (2, 3, 4, 5)

    def __init__(
        self,
        num_features: int,
        phi: float = 1.5,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        learn_phi: bool = False,
        phi_min: float = 1.1,
        phi_max: float = 3.0,
        warm_start: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.warm_start = warm_start
        self._set_exponent(phi, learn_phi, phi_min, phi_max, num_features, device, dtype)

    def reset_parameters(self) -> None:
        """Set gamma to 1, beta to 0, a learned phi and the running statistics to their beginning."""
        super().reset_parameters()
        if hasattr(self, "phi_logit"):  # not yet, while the base is set up
            self._reset_exponent()

    @override
    def group_statistics(self, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        phi = self._exponent(x)
        if isinstance(over, Processes):
            mu = over.median(x, phi, *SOLVER[x.dtype])
            var = over.mean((x - mu).square())
        else:
            mu, var = center_and_variance(x, reduced_dims(x), phi)
        return mu.flatten(), var.flatten()

    @override
    def statistics_over(self, values: Values) -> tuple[Tensor, Tensor]:
        phi = self.phi
        if isinstance(phi, Tensor):
            phi = phi.detach()[:, None].to(values.dtype)
        result, found = solve(values, phi, *CALIBRATION, interior=True)
        return result.value, found.var + (found.mean - result.value) ** 2

    @override
    def spec(self) -> Spec | None:
        return make_spec(AUG, PHI_OF_CHANNELS if self.learn_phi else self._phi, self.eps)

    @override
    def exponents(self) -> Tensor | None:
        if not self.learn_phi:
            return None
        phi = self.phi
        return phi if isinstance(phi, Tensor) else None

    @override
    def start(self) -> Tensor | None:
        return self.running_mean if self.warm_start and self.training else None

    def _exponent(self, x: Tensor) -> float | Tensor:
        phi = self.phi
        if not isinstance(phi, Tensor):
            return phi
        return along_channels(phi, x).to(torch.promote_types(x.dtype, torch.float32))

    @override
    def operator(self) -> tuple[str, dict[str, float | int]]:
        rtol, max_steps = SOLVER[torch.float32]
        if self.learn_phi:
            return "AugNormLearned", {"eps": self.eps, "rtol": rtol, "max_steps": max_steps}
        if self._phi == 2:
            return "BatchNorm", {"eps": self.eps}
        if self._phi == 1:
            return "MedianNorm", {"eps": self.eps}
        if self._phi > largest_phi(torch.float32):
            return "MidrangeNorm", {"eps": self.eps}
        return "AugNorm" if self._phi < 2 else "AugNormAbove2", {
            "phi": self._phi,
            "eps": self.eps,
            "rtol": rtol,
            "max_steps": max_steps,
        }

    def _own_options(self) -> dict[str, Any]:
        return {**self._exponent_options(), **({"warm_start": True} if self.warm_start else {})}


class AugNorm1d(AugNorm):
    """AugNorm of (N, C) or (N, C, L).

    mu = argmin_y sum |x - y|^phi over N and L; y = gamma (x - mu) / sqrt(mean((x - mu)^2) + eps) + beta.

    Args:
        num_features: C.
        phi: exponent in [1, inf]: 1 median, 2 mean (then it is BatchNorm1d), inf midrange.
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics; None averages all batches evenly.
        affine: learn gamma (weight) and beta (bias), each (C,).
        track_running_stats: keep running_mean (mu) and running_var (unbiased), each (C,).
        learn_phi: learn an exponent for each channel, which begins at phi; `phi` then is a tensor (C,).
        phi_min: lower end of a learned phi, above 1; no step of an optimizer can pass it.
        phi_max: upper end of a learned phi.
        warm_start: begin the solver at running_mean in training (not where it is compiled or synchronised); the
            result is the same to the solver's precision.
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.

    Raises:
        ConfigurationError: phi outside [1, inf], or learned from outside (phi_min, phi_max).
        InputError: another number of dimensions or channels.
        StatisticsError: one value per channel where the batch's own statistics are asked for.

    Reference: AugNorm; the solver is described in `augserve.norms.median.solve`.

    Example:
        >>> layer = AugNorm1d(3, phi=1.5)
        >>> layer(torch.randn(8, 3)).shape
        torch.Size([8, 3])
    """

    ndims = (2, 3)


class AugNorm2d(AugNorm):
    """AugNorm of images (N, C, H, W), statistics over N, H and W; see `AugNorm1d`."""

    ndims = (4,)


class AugNorm3d(AugNorm):
    """AugNorm of volumes (N, C, D, H, W), statistics over N, D, H and W; see `AugNorm1d`."""

    ndims = (5,)
