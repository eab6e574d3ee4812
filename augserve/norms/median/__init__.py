"""The generalized geometric median: `generalized_median`, its certificate and its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from augserve.errors import ConfigurationError, InputError
from augserve.norms.median.gradient import influence
from augserve.norms.median.problem import check_phi
from augserve.norms.median.result import MedianResult, Status
from augserve.norms.median.solve import solve

__all__ = ["MedianResult", "Status", "generalized_median"]


def generalized_median(
    x: Tensor,
    phi: float = 1.5,
    dim: int | Sequence[int] | None = None,
    *,
    rtol: float = 1e-6,
    max_steps: int = 32,
) -> MedianResult:
    """Return the generalized geometric median with a certified bracket.

    mu = argmin_y sum_i |x_i - y|^phi; phi = 1 is the median, 2 the mean, inf the midrange.

    Args:
        x: any shape, a floating dtype; float16 and bfloat16 are computed in float32.
        phi: exponent in [1, inf].
        dim: dimensions to reduce; None reduces all.
        rtol: the bracket's width at most, in standard deviations of the data.
        max_steps: passes over the data at most.

    Returns:
        value, lower, upper (dtype of x), num_steps, status: the shape of x without `dim`. `value` is
        differentiable in x; the weights of its gradient are |x_i - mu|^(phi-2), normalized to sum to 1.

    Raises:
        ConfigurationError: phi outside [1, inf], rtol or max_steps not positive.
        InputError: an integer or empty x.

    Reference: AugNorm; the bracketed iteration is described in `augserve.norms.median.solve`.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 1.0, 1.0, 100.0])
        >>> generalized_median(x, phi=1.0).value
        tensor(1.)
    """
    phi = check_phi(phi)
    if not rtol > 0 or max_steps < 1:
        raise ConfigurationError(f"rtol and max_steps must be positive; got {rtol} and {max_steps}")
    if not x.is_floating_point():
        raise InputError(f"expected floating point values; got {x.dtype}; convert with x.float()")
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    reduced = sorted(d % x.ndim for d in dims)
    kept = [d for d in range(x.ndim) if d not in reduced]
    shape = [x.shape[d] for d in kept]
    rows = x.permute(*kept, *reduced).reshape(math.prod(shape), -1) if x.numel() else x.new_empty(0, 0)
    if rows.shape[1] == 0:
        raise InputError(f"expected at least one value in each reduction; got shape {tuple(x.shape)}")
    parts = _Median.apply(rows, phi, rtol, max_steps)  # type: ignore[no-untyped-call]
    return MedianResult(*(part.reshape(shape) for part in parts))


class _Median(torch.autograd.Function):
    """Rows (R, m) to their medians (R,): the solver forward, the implicit function theorem backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, phi: float, rtol: float, max_steps: int) -> tuple[Tensor, ...]:
        compute = torch.promote_types(rows.dtype, torch.float32)
        result, _ = solve(rows.to(compute), phi, rtol, max_steps)
        value, lower, upper = (part.to(rows.dtype) for part in result[:3])
        ctx.save_for_backward(rows, result.value)
        ctx.phi = phi
        ctx.mark_non_differentiable(lower, upper, result.num_steps, result.status)
        return value, lower, upper, result.num_steps, result.status

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, value = ctx.saved_tensors
        weights = influence(rows.to(value.dtype), value[:, None], ctx.phi, (1,))
        return (grads[0].to(value.dtype)[:, None] * weights).to(rows.dtype), None, None, None
