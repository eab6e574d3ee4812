"""The kernels as operators of torch, which torch.compile and torch.export keep as they are.

    augserve::norm_forward   normalize (N, C, *spatial) with its own statistics
    augserve::norm_backward  the gradients of that
    augserve::norm_grouped   normalize each group of rows, with running statistics blended in

The device of x chooses: native on the CPU, Triton on CUDA, plain torch where neither is there or takes x. The
operators themselves know no gradient: `augserve.norms.function` makes them one differentiable function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augserve.norms import library
from augserve.norms.kernels import cuda, native, reference
from augserve.norms.kernels.spec import AUG, Groups, Spec
from augserve.norms.median.problem import largest_phi

_LIBRARY: Any = torch.library.Library("augserve", "FRAGMENT")  # type: ignore[no-untyped-call]
LARGEST_PHI = largest_phi(torch.float32)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_NORM = "int kind, float exponent, float eps, float rtol, int max_steps"
_LIBRARY.define(
    "norm_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? exponents, Tensor? start, "
    f"{_NORM}) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor statistics, Tensor? exponents, "
    f"{_NORM}) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "norm_grouped(Tensor x, Tensor? weight, Tensor? bias, Tensor? exponents, Tensor? running_center, "
    f"Tensor? running_spread, Tensor? order, Tensor? offsets, Tensor tracked_weight, {_NORM}) -> Tensor"
)


def covers(x: Tensor) -> bool:
    """Return whether there is a fast kernel for x (N, C, *spatial); the operators take any x."""
    return library.covers(x) or cuda.covers(x)


def has_kernel(spec: Spec) -> bool:
    """Return whether the kernels know the norm: not where phi is 1, or so large that it is the midrange."""
    return spec.kind != AUG or 1 < spec.exponent <= LARGEST_PHI


def _dense(x: Tensor) -> Tensor:
    """Return x contiguous or channels-last, copied where it is neither: what comes out lies as what goes in."""
    if x.is_contiguous() or (x.ndim in CHANNELS_LAST and x.is_contiguous(memory_format=CHANNELS_LAST[x.ndim])):
        return x
    return x.contiguous()


def _kernels(x: Tensor, spec: Spec) -> Any:
    if not has_kernel(spec):
        return reference
    if library.covers(x):
        return native
    return cuda if cuda.covers(x) else reference


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    start: Tensor | None,
    *norm: Any,
) -> tuple[Tensor, Tensor]:
    spec = Spec(*norm)
    y, statistics = _kernels(x, spec).forward(_dense(x), weight, bias, exponents, start, spec)
    return y, statistics


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, exponents: Tensor | None, *norm: Any
) -> tuple[Tensor, Tensor]:
    spec = Spec(*norm)
    dx, parameters = _kernels(x, spec).backward(dy, _dense(x), weight, statistics, exponents, spec)
    return dx, parameters


def _grouped(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    running_center: Tensor | None,
    running_spread: Tensor | None,
    order: Tensor | None,
    offsets: Tensor | None,
    tracked_weight: Tensor,
    *norm: Any,
) -> Tensor:
    running = None if running_center is None or running_spread is None else (running_center, running_spread)
    groups = None if order is None or offsets is None else Groups(order, offsets)
    spec = Spec(*norm)
    y: Tensor = _kernels(x, spec).grouped(_dense(x), weight, bias, exponents, running, groups, tracked_weight, spec)
    return y


def _statistics_like(x: Tensor) -> Tensor:
    return x.new_empty((4, x.shape[1]), dtype=torch.promote_types(x.dtype, torch.float32))


def _fake_forward(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_dense(x)), _statistics_like(x)


def _fake_backward(dy: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_dense(x)), _statistics_like(x)[:3].clone()


def _fake_grouped(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(_dense(x))


for _name, _kernel, _fake in (
    ("norm_forward", _forward, _fake_forward),
    ("norm_backward", _backward, _fake_backward),
    ("norm_grouped", _grouped, _fake_grouped),
):
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"augserve::{_name}", _fake, lib=_LIBRARY)

norm_forward = torch.ops.augserve.norm_forward.default
norm_backward = torch.ops.augserve.norm_backward.default
norm_grouped = torch.ops.augserve.norm_grouped.default
