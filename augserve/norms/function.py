"""A norm of a batch as one differentiable function: its statistics, y and what follows, by the kernel that takes x.

Only x, the parameters and four numbers a channel are kept for backward. Where gradients are to be differentiated
again, backward is written in operations of torch. A native kernel may be called past torch's dispatch, which takes
as long as the kernel on small data; it then moves the running statistics and does the ending on its way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from augserve.norms import library
from augserve.norms.kernels import dispatch, native, reference
from augserve.norms.kernels.spec import AUG, NO_ENDING, Ending, Moving, Spec
from augserve.norms.median.operator import SOLVER
from augserve.norms.torch_private import direct_apply, transforms_active, watched

PLAIN = (Tensor, torch.nn.Parameter)


def make_spec(kind: int, exponent: float, eps: float) -> Spec:
    """Return the norm with the layers' precision of the median."""
    return Spec(kind, exponent, eps, *SOLVER[torch.float32])


def takes(x: Tensor, spec: Spec) -> bool:
    """Return whether `normalize` is the way for x: a kernel does, or plain torch with the gradient written out.

    Not inside torch.func, whose transforms need operations that they know; nor for a compiler that sees no kernel:
    it fuses the definition. Of a mean and a variance torch's own gradient is as good. A graph of torch.export has
    the operator, whatever is installed where it is made.
    """
    if has_fast_kernel(x, spec):
        return True
    if transforms_active() or (torch.compiler.is_compiling() and not torch.compiler.is_exporting()):
        return False
    return torch.compiler.is_exporting() or (spec.kind == AUG and spec.exponent != 2)


def has_fast_kernel(x: Tensor, spec: Spec) -> bool:
    """Return whether a native or a Triton kernel normalizes x; none does inside torch.func."""
    return dispatch.has_kernel(spec) and dispatch.covers(x) and not transforms_active()


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
        x: of which `takes` is true.
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        exponents: phi of each channel (C,), in (1, inf), instead of spec.exponent.
        start: where the solver begins (C,), or None for the mean.
        spec: the norm.

    Returns:
        y like x, differentiable in x, weight, bias and exponents; (4, C) in float32 or better: center, spread
        (variance; max - min) and two more that backward needs, without gradient.
    """
    if x.dtype != torch.float64:
        weight, bias, exponents, start = (plain(part) for part in (weight, bias, exponents, start))
    if not torch.is_grad_enabled():
        y, statistics = dispatch.norm_forward(x, weight, bias, exponents, start, *spec)
        return y, statistics
    y, statistics = _Norm.apply(x, weight, bias, exponents, start, None, spec, None, NO_ENDING, False)  # type: ignore[no-untyped-call]
    return y, statistics


def runs_at_once(x: Tensor) -> bool:
    """Return whether a native kernel may be called for x past torch's dispatch: where nothing looks on."""
    return library.covers(x) and type(x) in PLAIN and not torch.compiler.is_compiling() and not watched()


def train_at_once(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    start: Tensor | None,
    spec: Spec,
    moving: Moving | None,
    ending: Ending,
) -> Tensor:
    """`normalize` of x that `runs_at_once`, running statistics moved and the ending done in the same call."""
    residual = ending.residual
    if residual is not None and not (type(residual) in PLAIN and native.lies_as(residual, x)):
        return ended(train_at_once(x, weight, bias, exponents, start, spec, moving, NO_ENDING), ending)
    weight, bias, exponents, start = (plain(part) for part in (weight, bias, exponents, start))
    if not torch.is_grad_enabled():
        return native.forward(x, weight, bias, exponents, start, spec, moving, ending)[0]
    y: Tensor = _apply_at_once(x, weight, bias, exponents, start, residual, spec, moving, ending, True)
    return y


def ended(y: Tensor, ending: Ending) -> Tensor:
    """Return max(0, y + residual), as far as the ending says; y may be overwritten."""
    if ending.residual is not None:
        y = y + ending.residual
    return F.relu(y, inplace=True) if ending.relu else y


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
        _residual: Tensor | None,  # of the ending: here for its gradient
        spec: Spec,
        moving: Moving | None,
        ending: Ending,
        at_once: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if at_once:
            y, statistics = native.forward(x, weight, bias, exponents, start, spec, moving, ending)
        else:
            y, statistics = dispatch.norm_forward(x, weight, bias, exponents, start, *spec)
        ctx.save_for_backward(x, weight, bias, exponents, statistics, y if ending.relu else None)
        ctx.spec, ctx.added, ctx.at_once = spec, ending.residual is not None, at_once
        if at_once:
            return y
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, exponents, statistics, rectified = ctx.saved_tensors
        spec, dy = ctx.spec, grads[0]
        again = torch.is_grad_enabled()
        at_once = ctx.at_once and not again and runs_at_once(dy)
        gated = at_once and rectified is not None and not ctx.added  # by the kernel, on the way
        if rectified is not None and not gated:
            dy = torch.ops.aten.threshold_backward(dy, rectified, 0)
        d_residual = dy if ctx.needs_input_grad[5] else None
        if again:
            found = reference.gradients(dy, [x, weight, bias, exponents], spec, again=True)
            return *found, None, d_residual, None, None, None, None
        if at_once:
            d_x, parameters = native.backward(dy, x, weight, statistics, exponents, spec, bias=bias, relu=gated)
        else:
            d_x, parameters = dispatch.norm_backward(dy, x, weight, statistics, exponents, *spec)
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
            None,
        )


_apply_at_once = direct_apply(_Norm)
