"""The native solver of the generalized median: arguments packed as native/include/augserve.h lays them out."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from augserve.norms.library import call, pointer

_MEDIAN = struct.Struct("<4qd2qdq5q2q")


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
        pointer(exponents, count),
        pointer(start, count),
        rtol,
        max_steps,
        *(to + 4 * count * k for k in range(5)),
        at,
        at + 8 * count,
    )
    call("median", arguments)
    value, lower, upper, mean, var = (part.clone() for part in real)
    steps, status = (part.clone() for part in whole)
    return value, lower, upper, steps, status, mean, var
