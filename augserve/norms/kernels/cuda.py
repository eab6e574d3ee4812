"""The Triton kernels for tensors on CUDA, imported only when such a tensor comes."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from augserve.norms.kernels.spec import Groups, Spec

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def covers(x: Tensor) -> bool:
    """Return whether the kernels take x (N, C, ...)."""
    return x.is_cuda and x.dtype in DTYPES and x.numel() > 0 and _installed()


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton() -> Any:
    from augserve.norms.kernels.triton import norm

    return norm


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    exponents: Tensor | None,
    start: Tensor | None,
    spec: Spec,
) -> tuple[Tensor, Tensor]:
    """As `native.forward`."""
    y, *statistics = _triton().forward(x, weight, bias, exponents, start, *spec)
    return y, torch.stack(statistics)


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
    """As `native.grouped`."""
    n, c = x.shape[:2]
    center, spread = running or torch.zeros((2, c), device=x.device)
    count = tracked_weight.shape[0]
    if groups is None:
        whole = torch.tensor([0, n], device=x.device)
        groups = Groups(torch.arange(n, device=x.device), whole)
    ids = torch.arange(count, device=x.device).repeat_interleave(groups.offsets.diff(), output_size=n)
    group = torch.empty(n, dtype=torch.int64, device=x.device).index_copy_(0, groups.order, ids)
    y: Tensor = _triton().grouped(
        x,
        weight,
        bias,
        center,
        spread,
        group,
        tracked_weight[group],
        count,
        exponents,
        *spec,
        prepared=(groups.order, groups.offsets),
    )
    return y


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, exponents: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor]:
    """As `native.backward`."""
    dx, *parameters = _triton().backward(dy, x, weight, *statistics, exponents, spec.kind, spec.exponent, spec.eps)
    return dx, torch.stack(parameters)
