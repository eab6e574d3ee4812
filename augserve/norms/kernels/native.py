"""The native C++ kernels for tensors on the CPU: arguments packed for the plain C interface of native/.

The structs are those of native/include/augserve.h; every field is 8 bytes wide, so that `struct.pack` makes them.
Whether the library is there, and may be used, is asked when this module is imported (see `augserve.native`).
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from augserve.errors import InputError
from augserve.native import load_library
from augserve.norms.kernels.spec import NO_ENDING, Ending, Groups, Moving, Spec

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

_FORWARD = struct.Struct("<6q3q3q4q2dqdqqq3q2q5q2d2q2q")
_BACKWARD = struct.Struct("<6q3q3q3q4q2dq4q3q2q")
_MEDIAN = struct.Struct("<4qd2qdq5q2q")


class Library(NamedTuple):
    """The functions of the library, and what its kernels run with here."""

    forward: Any
    backward: Any
    median: Any
    message: Any
    instruction_set: str


def _open() -> Library | None:
    loaded = load_library()
    if loaded is None:
        return None
    found = Library(
        loaded.augserve_run_forward,
        loaded.augserve_run_backward,
        loaded.augserve_run_median,
        loaded.augserve_message,
        loaded.augserve_instruction_set().decode(),
    )
    for run in found[:3]:
        run.argtypes, run.restype = (ctypes.c_char_p, ctypes.c_void_p), ctypes.c_int
    found.message.argtypes, found.message.restype = (ctypes.c_int,), ctypes.c_char_p
    return found


LIBRARY = _open()


def covers(x: Tensor) -> bool:
    """Return whether the kernels take x (N, C, ...)."""
    return LIBRARY is not None and x.device.type == "cpu" and x.dtype in DTYPES


def fast_in_channels_last() -> bool:
    """Return whether channels that lie side by side are normalized without a transpose, lane by lane."""
    return LIBRARY is not None and LIBRARY.instruction_set == "avx512"


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
    own, to = _pointer(statistics, 4 * c), parameters.data_ptr()
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
        _pointer(weight, c),
        spec.exponent,
        spec.eps,
        _pointer(exponents, c),
        own,
        own + 4 * c,
        own + 8 * c,
        own + 12 * c,
        to,
        to + 4 * c,
        0 if exponents is None else to + 8 * c,
        _pointer(bias, c) if relu else 0,
        int(relu),
    )
    _run(_need().backward, arguments)
    return dx, parameters


def median(
    rows: Tensor, exponents: Tensor | None, start: Tensor | None, exponent: float, rtol: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return value, lower, upper, steps, status, mean and biased variance of each row, (R, 1).

    Args:
        rows: float32 (R, m), m >= 1.
        exponents: float32 (R, 1), or None.
        start: float32 (R, 1), or None.
        exponent: phi of all rows where `exponents` is None.
        rtol: width of the bracket, in standard deviations.
        max_steps: passes at most.
    """
    rows = rows.contiguous()
    count = rows.shape[0]
    exponents, start = (None if part is None else part.contiguous() for part in (exponents, start))
    real, whole = torch.empty((5, count, 1)), torch.empty((2, count, 1), dtype=torch.int64)
    to, at = real.data_ptr(), whole.data_ptr()
    arguments = _MEDIAN.pack(
        torch.get_num_threads(),
        count,
        rows.shape[1],
        rows.data_ptr(),
        exponent,
        _pointer(exponents, count),
        _pointer(start, count),
        rtol,
        max_steps,
        *(to + 4 * count * k for k in range(5)),
        at,
        at + 8 * count,
    )
    _run(_need().median, arguments)
    value, lower, upper, mean, var = (part.clone() for part in real)
    steps, status = (part.clone() for part in whole)
    return value, lower, upper, steps, status, mean, var


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
        _pointer(weight, c),
        _pointer(bias, c),
        spec.exponent,
        spec.eps,
        _pointer(exponents, c),
        spec.rtol,
        spec.max_steps,
        _pointer(start, c),
        count,
        0 if groups is None else _pointer(groups.order, n, torch.int64),
        0 if groups is None else _pointer(groups.offsets, count + 1, torch.int64),
        _pointer(tracked_weight, count),
        0 if running is None else _pointer(running[0], c),
        0 if running is None else _pointer(running[1], c),
        own,
        own and own + 4 * c,
        own and own + 8 * c,
        own and own + 12 * c,
        0,
        0.0 if moving is None else moving.momentum,
        0.0 if moving is None else moving.unbiased,
        0 if moving is None else _pointer(moving.center, c),
        0 if moving is None else _pointer(moving.spread, c),
        0 if residual is None else residual.data_ptr(),
        int(ending.relu),
    )
    _run(_need().forward, arguments)
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


def _pointer(tensor: Tensor | None, count: int, dtype: torch.dtype = torch.float32) -> int:
    """Return where `count` numbers lie, 0 for None, or raise InputError where they do not."""
    if tensor is None:
        return 0
    if tensor.numel() == count and tensor.dtype is dtype and tensor.is_cpu and tensor.is_contiguous():
        return tensor.data_ptr()
    raise InputError(
        f"native kernel: expected {count} numbers, {dtype}, contiguous, on the CPU; got {tuple(tensor.shape)}, "
        f"{tensor.dtype}, on {tensor.device}"
    )


def _need() -> Library:
    if LIBRARY is None:
        raise InputError("the native library is not there; see `augserve info`")
    return LIBRARY


def _run(function: Any, arguments: bytes) -> None:
    code = function(arguments, None)
    if code:
        raise InputError(f"native kernel: {_need().message(code).decode()}")
