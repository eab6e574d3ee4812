"""The native C++ library as the norms call it, through the plain C interface of native/include/augserve.h.

The structs of its calls are packed with `struct`; every field is 8 bytes wide. Whether the library is there and may
be used, is asked when this module is imported (see `augserve.native`).
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from augserve.errors import InputError
from augserve.native import load_library

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


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


def pointer(tensor: Tensor | None, count: int, dtype: torch.dtype = torch.float32) -> int:
    """Return where `count` numbers lie, 0 for None, or raise InputError where they do not."""
    if tensor is None:
        return 0
    if tensor.numel() == count and tensor.dtype is dtype and tensor.is_cpu and tensor.is_contiguous():
        return tensor.data_ptr()
    raise InputError(
        f"native kernel: expected {count} numbers, {dtype}, contiguous, on the CPU; got {tuple(tensor.shape)}, "
        f"{tensor.dtype}, on {tensor.device}"
    )


def call(name: str, arguments: bytes) -> None:
    """Call a function of the library: forward, backward or median.

    Raises:
        InputError: arguments that it refuses; or no library.
    """
    if LIBRARY is None:
        raise InputError("the native library is not there; see `augserve info`")
    code = getattr(LIBRARY, name)(arguments, None)
    if code:
        raise InputError(f"native kernel: {LIBRARY.message(code).decode()}")
