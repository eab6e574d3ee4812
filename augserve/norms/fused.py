"""A norm as one differentiable function over the kernels: statistics, affine map and backward in one call each.

Only x, the parameters and four numbers a channel are kept for backward. Where gradients are to be differentiated
again, backward is written in plain torch instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from augserve.norms.functional import SOLVER
from augserve.norms.kernels import native, operators, reference
from augserve.norms.kernels.spec import NO_ENDING, Ending, Moving, Spec

RTOL, MAX_STEPS = SOLVER[torch.float32]
PLAIN = (Tensor, torch.nn.Parameter)


def make_spec(kind: int, exponent: float, eps: float) -> Spec:
    """Return the norm with the layers' precision of the median."""
    return Spec(kind, exponent, eps, RTOL, MAX_STEPS)


def covers(x: Tensor, spec: Spec) -> bool:
    """Return whether a kernel normalizes x and differentiates that.

    Not where phi has a closed form with a gradient at few values (1, or so large that it is the midrange), and not
    inside torch.func: its transforms need operations that they know.
    """
    return operators.has_kernel(spec) and operators.covers(x) and not torch._C._are_functorch_transforms_active()


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    start: Tensor | None,
    spec: Spec,
) -> tuple[Tensor, Tensor]:
    """Normalize x (N, C, *spatial) with its own statistics.

    Args:
        x: of which `covers` is true.
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        exponents: phi of each channel (C,), in (1, inf), instead of spec.exponent.
        start: where the solver begins (C,), or None for the mean.
        spec: the norm.

    Returns:
        y like x, differentiable in x, weight, bias and exponents; float32 (4, C): center, spread (variance; max -
        min) and two more that backward needs, without gradient.
    """
    weight, bias, exponents, start = (plain(part) for part in (weight, bias, exponents, start))
    if not torch.is_grad_enabled():
        y, statistics = operators.norm_forward(x, weight, bias, exponents, start, *spec)
        return y, statistics
    y, statistics = _Norm.apply(x, weight, bias, exponents, start, *spec)  # type: ignore[no-untyped-call]
    return y, statistics


def runs_now(x: Tensor) -> bool:
    """Return whether a native kernel may be called for x at once, past torch's dispatch.

    Not where something looks on: a compiler, an exporter, a tracer, a mode or a subclass of Tensor.
    """
    return (
        native.covers(x)
        and type(x) in PLAIN
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    )


def ends_now(x: Tensor, ending: Ending) -> bool:
    """Return whether `train` takes the ending too: a residual has to lie in memory as x does."""
    residual = ending.residual
    return residual is None or (type(residual) in PLAIN and native.lies_as(residual, x))


def ended(y: Tensor, ending: Ending) -> Tensor:
    """Return max(0, y + residual), as far as the ending says; y may be overwritten."""
    if ending.residual is not None:
        y = y + ending.residual
    return F.relu(y, inplace=True) if ending.relu else y


def train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    start: Tensor | None,
    spec: Spec,
    moving: Moving | None,
    ending: Ending = NO_ENDING,
) -> Tensor:
    """`normalize` where `runs_now`, with the running statistics updated and the ending done on the way."""
    weight, bias, exponents, start = (plain(part) for part in (weight, bias, exponents, start))
    if not torch.is_grad_enabled():
        return native.forward(x, weight, bias, exponents, start, spec, moving, ending)[0]
    y: Tensor = _apply_now(x, weight, bias, exponents, start, ending.residual, spec, moving, ending)  # type: ignore[no-untyped-call]
    return y


def plain(part: Tensor | None) -> Tensor | None:
    """Return a parameter as the kernels take it: float32, contiguous."""
    if part is None or (part.dtype == torch.float32 and part.is_contiguous()):
        return part
    return part.float().contiguous()


class _Norm(torch.autograd.Function):
    # In the old style, with ctx in forward: it costs half of the new one, and torch.func does not come here.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        exponents: Tensor | None,
        start: Tensor | None,
        kind: int,
        exponent: float,
        eps: float,
        rtol: float,
        max_steps: int,
    ) -> tuple[Tensor, Tensor]:
        y, statistics = operators.norm_forward(
            x, weight, bias, exponents, start, kind, exponent, eps, rtol, max_steps
        )
        ctx.save_for_backward(x, weight, bias, exponents, statistics)
        ctx.norm = (kind, exponent, eps, rtol, max_steps)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, exponents, statistics = ctx.saved_tensors
        if torch.is_grad_enabled():
            given = [x, weight, bias, exponents]
            return *reference.gradients(grads[0], given, Spec(*ctx.norm), again=True), *(None,) * 6
        d_x, parameters = operators.norm_backward(grads[0], x, weight, statistics, exponents, *ctx.norm)
        d_weight, d_bias, d_exponents = parameters.unbind()
        return (
            d_x,
            None if weight is None else d_weight,
            None if bias is None else d_bias,
            None if exponents is None else d_exponents,
            *(None,) * 6,
        )


class _Now(torch.autograd.Function):
    """`_Norm` without torch's dispatch, which takes as long as a kernel on small data."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        exponents: Tensor | None,
        start: Tensor | None,
        _residual: Tensor | None,  # of the ending: here for its gradient
        spec: Spec,
        moving: Moving | None,
        ending: Ending,
    ) -> Tensor:
        y, statistics = native.forward(x, weight, bias, exponents, start, spec, moving, ending)
        ctx.save_for_backward(x, weight, bias, exponents, statistics, y if ending.relu else None)
        ctx.spec, ctx.added = spec, ending.residual is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, exponents, statistics, rectified = ctx.saved_tensors
        spec, dy = ctx.spec, grads[0]
        now = not torch.is_grad_enabled() and runs_now(dy)
        gated = now and rectified is not None and not ctx.added  # by the kernel, on the way
        if rectified is not None and not gated:
            dy = torch.ops.aten.threshold_backward(dy, rectified, 0)
        d_residual = dy if ctx.needs_input_grad[5] else None
        if torch.is_grad_enabled():
            given = [x, weight, bias, exponents]
            return *reference.gradients(dy, given, spec, again=True), None, d_residual, None, None, None
        if now:
            d_x, parameters = native.backward(dy, x, weight, statistics, exponents, spec, bias=bias, relu=gated)
        else:
            d_x, parameters = operators.norm_backward(dy, x, weight, statistics, exponents, *spec)
        return (
            d_x,
            None if weight is None else parameters[0],
            None if bias is None else parameters[1],
            None if exponents is None else parameters[2],
            None,
            d_residual,
            None,
            None,
            None,
        )


# Function.apply looks for what torch.func left in its arguments; `runs_now` has seen that there is nothing.
_apply_now = super(torch.autograd.Function, _Now).apply
