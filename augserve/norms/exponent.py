"""AugNorm's exponent phi, fixed or learned.

Learned (DiffPhi), phi is a parameter for each channel, kept inside its range by its parametrisation:

    phi = phi_min + (phi_max - phi_min) * sigmoid(phi_logit)

so that no step of an optimizer can leave [phi_min, phi_max]. Source: AugNorm, learned exponent; there phi may fall
below 1, where the median is not unique.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from augserve.errors import ConfigurationError
from augserve.norms.median.problem import check_phi


class HasExponent(nn.Module):
    """A layer with an exponent: `phi` is a float, or a tensor (size,) in [phi_min, phi_max] where it is learned."""

    phi_logit: Tensor | None

    def _set_exponent(
        self,
        phi: float,
        learn: bool,
        phi_min: float,
        phi_max: float,
        size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Keep phi as a number, or as a parameter of `size` values that begin at phi."""
        self._phi = check_phi(phi)
        self.phi_min, self.phi_max = float(phi_min), float(phi_max)
        logit = None
        if learn:
            if not 1 < self.phi_min < self.phi_max < math.inf:
                raise ConfigurationError(
                    f"a learned phi needs 1 < phi_min < phi_max < inf; got phi_min={phi_min} and phi_max={phi_max}"
                )
            if not self.phi_min < self._phi < self.phi_max:
                raise ConfigurationError(
                    f"a learned phi must begin between phi_min={phi_min} and phi_max={phi_max}; got {phi}"
                )
            logit = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.register_parameter("phi_logit", logit)
        self._reset_exponent()

    def _reset_exponent(self) -> None:
        if self.phi_logit is not None:
            share = (self._phi - self.phi_min) / (self.phi_max - self.phi_min)
            nn.init.constant_(self.phi_logit, math.log(share / (1 - share)))

    @property
    def learn_phi(self) -> bool:
        """Whether phi is learned."""
        return self.phi_logit is not None

    @property
    def phi(self) -> float | Tensor:
        """The exponent: a float, or float32 or better (size,), differentiable in `phi_logit`."""
        if self.phi_logit is None:
            return self._phi
        logit = self.phi_logit.to(torch.promote_types(self.phi_logit.dtype, torch.float32))
        low, high = (torch.full_like(logit, end) for end in (self.phi_min, self.phi_max))
        # Not a number, as a step with an infinite gradient may leave it, counts as the beginning.
        share = torch.sigmoid(logit).nan_to_num(nan=(self._phi - self.phi_min) / (self.phi_max - self.phi_min))
        return torch.lerp(low, high, share)  # exact at both ends

    def _exponent_options(self) -> dict[str, Any]:
        if not self.learn_phi:
            return {"phi": self._phi}
        return {"phi": self._phi, "learn_phi": True, "phi_min": self.phi_min, "phi_max": self.phi_max}
