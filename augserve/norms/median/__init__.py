"""The generalized geometric median: `generalized_median`, its certificate and its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from augserve.errors import ConfigurationError, InputError
from augserve.norms.median.operator import median_of_rows
from augserve.norms.median.problem import check_phi
from augserve.norms.median.result import MedianResult, Status
from augserve.norms.reduction import as_rows, require_floating

__all__ = ["MedianResult", "Status", "generalized_median"]


def generalized_median(
    x: Tensor,
    phi: float | Tensor = 1.5,
    dim: int | Sequence[int] | None = None,
    *,
    rtol: float = 1e-6,
    max_steps: int = 32,
    start: Tensor | None = None,
) -> MedianResult:
    """Return the generalized geometric median with a certified bracket.

    mu = argmin_y sum_i |x_i - y|^phi; phi = 1 is the median, 2 the mean, inf the midrange.

    Args:
        x: any shape, a floating dtype; float16 and bfloat16 are computed in float32.
        phi: exponent in [1, inf]; or a tensor of them that broadcasts to the result, such as one for each channel.
        dim: dimensions to reduce; None reduces all.
        rtol: the bracket's width at most, in standard deviations of the data.
        max_steps: passes over the data at most.
        start: where to begin, broadcasting to the result, instead of the mean: a value known to be near saves
            passes. The certificate is the same.

    Returns:
        value, lower, upper (dtype of x), num_steps, status: the shape of x without `dim`. `value` is
        differentiable in x, with weights |x_i - mu|^(phi-2) normalized to sum to 1, and in a tensor phi; twice
        where the second derivative exists.

    Raises:
        ConfigurationError: phi outside [1, inf] or of another shape, rtol or max_steps not positive.
        InputError: an integer x, no value to reduce, or a dimension that x does not have.

    The bracket holds mu up to rounding of the data. In float32 and for phi within 0.05 of 1 the rounding of the
    sums, which is divided by phi - 1, may exceed rtol.

    Reference: AugNorm; the bracketed iteration is described in `augserve.norms.median.solve`.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 1.0, 1.0, 100.0])
        >>> generalized_median(x, phi=1.0).value
        tensor(1.)
    """
    if not rtol > 0 or max_steps < 1:
        raise ConfigurationError(f"rtol and max_steps must be positive; got {rtol} and {max_steps}")
    require_floating(x, "generalized_median")
    reduced = _dims(dim, x.ndim)
    shape = [x.shape[d] for d in range(x.ndim) if d not in reduced]
    rows = as_rows(x, reduced).to(torch.promote_types(x.dtype, torch.float32))
    if rows.shape[1] == 0:
        raise InputError(f"expected at least one value in each reduction; got shape {tuple(x.shape)}")
    exponent = _for_each(phi, "phi", shape, rows) if isinstance(phi, Tensor) else check_phi(phi)
    begin = None if start is None else _for_each(start, "start", shape, rows)
    solution = median_of_rows(rows, exponent, rtol, max_steps, start=begin)
    value, lower, upper = (part.reshape(shape).to(x.dtype) for part in solution[:3])
    return MedianResult(value, lower, upper, solution.num_steps.reshape(shape), solution.status.reshape(shape))


def _dims(dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    given = tuple(range(ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if ndim == 0 and given in ((0,), (-1,)):  # as torch's own reductions take them
        return ()
    reduced = tuple(sorted({d % ndim for d in given if -ndim <= d < ndim}))
    if len(reduced) != len(given):
        raise InputError(f"expected different dimensions from {-ndim} to {ndim - 1}; got dim={dim}")
    return reduced


def _for_each(values: Tensor, name: str, shape: list[int], rows: Tensor) -> Tensor:
    """Return values laid out as one number a row, (R, 1)."""
    try:
        each = values.to(rows.dtype).expand(shape)
    except RuntimeError:
        raise ConfigurationError(
            f"expected {name} to broadcast to the result's shape {tuple(shape)}; got {tuple(values.shape)}"
        ) from None
    return each.reshape(-1, 1)
