"""The median as one operator of torch: the solver forward, the implicit function theorem backward.

The solver's loop depends on the data, so torch.compile, torch.export and vmap see it as the opaque operator
`augserve::generalized_median`, with a fake kernel for shapes; the gradient around it is ordinary torch code, which
can be differentiated again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from augserve.errors import ConfigurationError, InputError
from augserve.norms import library
from augserve.norms.median import native
from augserve.norms.median.gradient import influence, sensitivity
from augserve.norms.median.solve import OUT_OF_RANGE, solve
from augserve.norms.median.values import ROWS, Stored
from augserve.norms.reduction import Reduction, Segments, as_rows

# Width of the solver's bracket, in standard deviations, and its passes at most. Newton's last estimate is far
# closer than the bracket is wide; float64 is for checking gradients.
CALIBRATION = (1e-9, 64)  # over a data set, in float64
SOLVER = {torch.float32: (1e-5, 32), torch.float64: (1e-12, 64)}


class Solution(NamedTuple):
    """A `MedianResult` with the moments found on the way, each of the shape of a statistic."""

    value: Tensor
    lower: Tensor
    upper: Tensor
    num_steps: Tensor
    status: Tensor
    mean: Tensor
    var: Tensor


@torch.library.custom_op("augserve::generalized_median", mutates_args=())
def _solve(
    x: Tensor,
    exponents: Tensor | None,
    start: Tensor | None,
    index: Tensor | None,
    size: int,
    phi: float,
    interior: bool,
    rtol: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if index is None and x.dtype == torch.float32 and library.covers(x):
        if exponents is not None and not interior and not bool((exponents >= 1).all()):
            raise ConfigurationError(OUT_OF_RANGE)
        return native.median(x, exponents, start, phi, rtol, max_steps)
    values = Stored(x, _reduction(index, size))
    exponent = phi if exponents is None else exponents
    result, moments = solve(values, exponent, rtol, max_steps, start=start, interior=interior)
    return (*result, *moments)


@_solve.register_fake
def _(x: Tensor, exponents: Tensor | None, start: Tensor | None, index: Tensor | None, size: int, *_: Any) -> Any:
    shape = (x.shape[0], 1) if index is None else (size, *x.shape[1:])
    real = [x.new_empty(shape) for _ in range(5)]
    whole = [x.new_empty(shape, dtype=torch.int64) for _ in range(2)]
    return (*real[:3], *whole, *real[3:])


class _Median(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        exponents: Tensor | None,
        start: Tensor | None,
        index: Tensor | None,
        size: int,
        phi: float,
        interior: bool,
        rtol: float,
        max_steps: int,
    ) -> tuple[Tensor, ...]:
        # By name and not as *inputs: torch.compile counts the parameters.
        solution: tuple[Tensor, ...] = _solve(x, exponents, start, index, size, phi, interior, rtol, max_steps)
        return solution

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, exponents, _, index, ctx.size, ctx.phi, ctx.interior, *_ = inputs
        ctx.save_for_backward(x, exponents, index, output[0])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, exponents, index, mu = ctx.saved_tensors
        reduction = _reduction(index, ctx.size)
        phi = ctx.phi if exponents is None else exponents
        # Differences of the largest values of a dtype overflow; a quarter of them does not, and is exact.
        big = reduction.amax(x.detach().abs()) > torch.finfo(x.dtype).max / 4
        scale = torch.where(big, 0.25, 1.0).to(x.dtype)
        x, mu = x * reduction.each(scale), mu * scale
        d_x = influence(x, mu, phi, reduction, grads[0], ctx.interior)
        d_phi = None
        if exponents is not None and ctx.needs_input_grad[1]:
            d_phi = grads[0] * (sensitivity(x, mu, exponents, reduction) / scale)
        return d_x, d_phi, *(None,) * 7

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        x, exponents, start, index, size, *options = inputs
        if index is not None:
            raise InputError("expected nodes (n, C) of all graphs in one batch; got one more dimension from vmap")
        count = info.batch_size

        def folded(part: Tensor | None, dim: int | None) -> Tensor | None:
            if part is None:
                return None
            full = part.expand(count, *part.shape) if dim is None else part.movedim(dim, 0)
            return full.reshape(-1, full.shape[-1])

        parts = [folded(part, dim) for part, dim in zip((x, exponents, start), in_dims, strict=False)]
        outputs = _Median.apply(*parts, None, size, *options)  # type: ignore[no-untyped-call]
        return tuple(part.reshape(count, -1, 1) for part in outputs), (0,) * len(outputs)


def median_of_rows(
    rows: Tensor,
    phi: float | Tensor,
    rtol: float,
    max_steps: int,
    *,
    start: Tensor | None = None,
    interior: bool = False,
) -> Solution:
    """Return the median of each row.

    Args:
        rows: (R, m), m >= 1, float32 or float64.
        phi: the exponent, checked; or (R, 1), the dtype of rows.
        rtol: as `solve`.
        max_steps: as `solve`.
        start: (R, 1), where to begin.
        interior: every exponent of a tensor is known to lie in (1, inf).

    Returns:
        (R, 1) each; `value` is differentiable in rows and phi, twice where the second derivative exists.
    """
    return _apply(rows, phi, start, None, 0, interior, rtol, max_steps)


def median_along(x: Tensor, dims: tuple[int, ...], phi: float | Tensor, *, start: Tensor | None = None) -> Solution:
    """Return the median along dimensions, which keep size 1, as the layers take it.

    Args:
        x: any shape, float32 or float64.
        dims: the dimensions.
        phi: the exponent, checked; or a tensor of them, in (1, inf), that broadcasts to the result.
        start: where to begin, broadcasting to the result.
    """
    shape = [1 if d in dims else size for d, size in enumerate(x.shape)]

    def each(values: Tensor) -> Tensor:
        return values.to(x.dtype).expand(shape).reshape(-1, 1)

    exponent = each(phi) if isinstance(phi, Tensor) else phi
    begin = None if start is None else each(start)
    solution = median_of_rows(as_rows(x, dims), exponent, *SOLVER[x.dtype], start=begin, interior=True)
    return Solution(*(part.reshape(shape) for part in solution))


def center_and_variance(x: Tensor, dims: tuple[int, ...], phi: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return mu and the biased variance about mu, as `median_along`, both differentiable."""
    mu = median_along(x, dims, phi).value
    return mu, (x - mu).square().mean(dim=dims, keepdim=True)


def median_of_segments(
    x: Tensor, index: Tensor, size: int, phi: float | Tensor, rtol: float, max_steps: int, *, interior: bool = False
) -> Solution:
    """Return the median of each graph and channel, (size, C); as `median_of_rows`, 0 for an empty graph.

    Args:
        x: (n, C), float32 or float64.
        index: int64 (n,), the graph of each node.
        size: the number of graphs.
        phi: the exponent, checked; or (size, C), the dtype of x.
        rtol: as `solve`.
        max_steps: as `solve`.
        interior: every exponent of a tensor is known to lie in (1, inf).
    """
    return _apply(x, phi, None, index, size, interior, rtol, max_steps)


def _apply(
    x: Tensor,
    phi: float | Tensor,
    start: Tensor | None,
    index: Tensor | None,
    size: int,
    interior: bool,
    rtol: float,
    max_steps: int,
) -> Solution:
    exponents = phi if isinstance(phi, Tensor) else None
    exponent = math.nan if isinstance(phi, Tensor) else phi
    parts = _Median.apply(x, exponents, start, index, size, exponent, interior, rtol, max_steps)  # type: ignore[no-untyped-call]
    return Solution(*parts)


def _reduction(index: Tensor | None, size: int) -> Reduction:
    return ROWS if index is None else Segments(index, size)
