"""The native C++ kernels for tensors on the CPU: arguments packed as native/include/augserve.h lays them out."""

from __future__ import annotations

import struct

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from augserve.errors import InputError
from augserve.norms.kernels.spec import NO_ENDING, Ending, Groups, Moving, Spec
from augserve.norms.library import DTYPES, call, pointer

_FORWARD = struct.Struct("<6q3q3q4q2dqdqqq3q2q5q2d2q2q")
_BACKWARD = struct.Struct("<6q3q3q3q4q2dq4q3q2q")


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    start: Tensor | None,
    spec: Spec,
    moving: Moving | None = None,
    ending: Ending = NO_ENDING,
) -> tuple[Tensor, Tensor]:
    """Normalize x with its own statistics.

    Args:
        x: (N, C, *spatial), one of `DTYPES`.
        weight: float32 (C,), or None for 1.
        bias: float32 (C,), or None for 0.
        exponents: float32 (C,), phi of each channel instead of spec.exponent.
        start: float32 (C,), where the solver begins; None: the mean.
        spec: the norm.
        moving: running statistics to update.
        ending: what follows the norm.

    Returns:
        y like x; float32 (4, C): center, spread, first, second, as augserve.h defines them.
    """
    statistics = torch.empty((4, x.shape[1]))
    y = _forward(x, (weight, bias, exponents, start), spec, statistics=statistics, moving=moving, ending=ending)
    if moving is not None:
        increment_version((moving.center, moving.spread))
    return y, statistics


def grouped(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    groups: Groups | None,
    tracked_weight: Tensor,
    spec: Spec,
) -> Tensor:
    """Normalize each group of rows with its own statistics, blended with the running ones.

    Args:
        x: as `forward`.
        weight: as `forward`.
        bias: as `forward`.
        exponents: as `forward`.
        running: running center and spread, float32 (C,) each; None where every weight is 0.
        groups: the groups; None: all rows are one.
        tracked_weight: float32 (G,), lambda of each group.
        spec: the norm.
    """
    return _forward(x, (weight, bias, exponents, None), spec, running, groups, tracked_weight)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    exponents: Tensor | None,
    spec: Spec,
    *,
    bias: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return dL/dx like x, and float32 (3, C): dL/dweight, dL/dbias, dL/dexponents (0 without exponents).

    Args:
        dy: dL/dy, the shape of x.
        x: as `forward` took it.
        weight: as `forward` took it.
        statistics: as `forward` gave them.
        exponents: as `forward` took them.
        spec: as `forward` took it.
        bias: as `forward` took it; only looked at with `relu`.
        relu: whether y was max(0, norm(x)), without a residual: dy is 0 then where it was closed.
    """
    x, x_layout = _laid_out(x)
    if dy.shape != x.shape:
        raise InputError(f"expected dy of the shape of x, {tuple(x.shape)}; got {tuple(dy.shape)}")
    dy, dy_layout = _laid_out(dy if dy.dtype == x.dtype else dy.to(x.dtype))
    dx, dx_layout = torch.empty_like(x), x_layout
    n, c = x.shape[:2]
    parameters = torch.empty((3, c)) if exponents is not None else torch.zeros((3, c))
    own, to = pointer(statistics, 4 * c), parameters.data_ptr()
    arguments = _BACKWARD.pack(
        spec.kind,
        DTYPES[x.dtype],
        torch.get_num_threads(),
        n,
        c,
        _positions(x),
        *x_layout,
        *dy_layout,
        *dx_layout,
        x.data_ptr(),
        dy.data_ptr(),
        dx.data_ptr(),
        pointer(weight, c),
        spec.exponent,
        spec.eps,
        pointer(exponents, c),
        own,
        own + 4 * c,
        own + 8 * c,
        own + 12 * c,
        to,
        to + 4 * c,
        0 if exponents is None else to + 8 * c,
        pointer(bias, c) if relu else 0,
        int(relu),
    )
    call("backward", arguments)
    return dx, parameters


def _forward(
    x: Tensor,
    parameters: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    spec: Spec,
    running: tuple[Tensor, Tensor] | None = None,
    groups: Groups | None = None,
    tracked_weight: Tensor | None = None,
    statistics: Tensor | None = None,
    moving: Moving | None = None,
    ending: Ending = NO_ENDING,
) -> Tensor:
    weight, bias, exponents, start = parameters
    x, x_layout = _laid_out(x)
    y = torch.empty_like(x)
    residual = ending.residual
    if residual is not None and not lies_as(residual, x):
        raise InputError("native kernel: expected a residual of the shape, dtype and strides of x")
    n, c = x.shape[:2]
    own = 0 if statistics is None else statistics.data_ptr()
    count = 1 if groups is None else groups.offsets.shape[0] - 1
    arguments = _FORWARD.pack(
        spec.kind,
        DTYPES[x.dtype],
        torch.get_num_threads(),
        n,
        c,
        _positions(x),
        *x_layout,
        *x_layout,
        x.data_ptr(),
        y.data_ptr(),
        pointer(weight, c),
        pointer(bias, c),
        spec.exponent,
        spec.eps,
        pointer(exponents, c),
        spec.rtol,
        spec.max_steps,
        pointer(start, c),
        count,
        0 if groups is None else pointer(groups.order, n, torch.int64),
        0 if groups is None else pointer(groups.offsets, count + 1, torch.int64),
        pointer(tracked_weight, count),
        0 if running is None else pointer(running[0], c),
        0 if running is None else pointer(running[1], c),
        own,
        own and own + 4 * c,
        own and own + 8 * c,
        own and own + 12 * c,
        0,
        0.0 if moving is None else moving.momentum,
        0.0 if moving is None else moving.unbiased,
        0 if moving is None else pointer(moving.center, c),
        0 if moving is None else pointer(moving.spread, c),
        0 if residual is None else residual.data_ptr(),
        int(ending.relu),
    )
    call("forward", arguments)
    return y


def lies_as(residual: Tensor, x: Tensor) -> bool:
    """Return whether a kernel may add the residual to what it makes of x."""
    same = residual.shape == x.shape and residual.dtype == x.dtype and residual.device == x.device
    return same and _layout(x) is not None and residual.stride() == x.stride()


def _laid_out(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return x, or a contiguous copy of it, with its strides of rows, channels and positions."""
    if (layout := _layout(x)) is not None:
        return x, layout
    return _laid_out(x.contiguous())


def _layout(x: Tensor) -> tuple[int, int, int] | None:
    """Return the strides of rows, channels and positions, or None where x has gaps or another order."""
    positions = _positions(x)
    if x.is_contiguous():
        return x.shape[1] * positions, positions, 1
    if x.ndim in (4, 5):
        order = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        if x.is_contiguous(memory_format=order):
            return x.shape[1] * positions, 1, x.shape[1]
    return None


def _positions(x: Tensor) -> int:
    channels = x.shape[0] * x.shape[1]
    return x.numel() // channels if channels else 1
