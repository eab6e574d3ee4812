"""Normalization on CUDA devices: entry points that launch the Triton kernels.

They have the meaning of native/include/augserve.h. Nothing here waits for the device. Exponents lie in (1, 1e9];
the median, phi = 1, and the midrange, phi beyond 1e9, are for the caller to send elsewhere. Tensors (C), (N) and
(R) are contiguous and on the device of x, statistics and running statistics float32.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from augserve.norms.kernels.triton.launch import ANY, AUG, Affine, Groups, Task, exponent_class, on_device, run
from augserve.norms.kernels.triton.plan import Layout, arrange, group_order, like, plan


def available() -> bool:
    """Return whether Triton is installed, without importing it; the caller sees whether there is a device."""
    return importlib.util.find_spec("triton") is not None


def forward(
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
    *,
    limit: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Normalize x with its own statistics: y = weight (x - center) / divisor + bias.

    Args:
        x: (N, C, *spatial), float32, float16 or bfloat16, contiguous or channels-last (else it is copied).
        weight: (C), None for 1.
        bias: (C), None for 0.
        exponents: phi of each channel (C), in (1, 1e9]; None for `exponent`.
        start: where the solver begins (C), None for the mean; large sets begin at the median of a sample instead.
        kind: 0 AugNorm, 1 RobustNorm, 2 RobustNorm by the range.
        exponent: phi, in (1, 1e9], or RobustNorm's p.
        eps: added to the variance, or to the denominator.
        rtol: width of the median's bracket, in standard deviations.
        max_steps: passes of the solver at most.
        limit: up to how many values a set is one program's; None for the rule of `plan`.

    Returns:
        y, like x in memory, and (C) float32 each: center, spread (biased variance about it; max - min), first (mean
        - center; min) and second (0; max).
    """
    x, layout = arrange(x, grouped=False)
    y = torch.empty_like(x)
    sizes = plan(layout, False, x.element_size(), limit)
    task = Task(kind, float(exponent), exponents, float(eps), float(rtol), max_steps)
    statistics = run(x, y, layout, sizes, Affine(weight, bias), start, task, Groups(), layout.rows)
    return y, statistics[0], statistics[1], statistics[2], statistics[3]


def grouped(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_center: Tensor,
    running_spread: Tensor,
    group: Tensor,
    tracked_weight: Tensor,
    groups: int,
    exponents: Tensor | None,
    kind: int,
    exponent: float,
    eps: float,
    rtol: float,
    max_steps: int,
    *,
    largest: int | None = None,
    prepared: tuple[Tensor, Tensor] | None = None,
    limit: int | None = None,
) -> Tensor:
    """Normalize the rows of each group with its own statistics, blended with the running ones.

    Args as `forward`, and:
        running_center: (C).
        running_spread: (C): variance; (max - min)^p for kind 1; max - min for kind 2.
        group: int64 (N), ids 0..groups-1.
        tracked_weight: float32 (N), the weight of the running statistics, equal within a group; 1 takes them as
            they are and looks at no value.
        groups: G.
        largest: the most rows of any group, where the host knows it: fewer programs are launched. It must not be
            too small; it does not change the answer.
        prepared: what `group_order` made of `group`, to use again in the next layer.

    Returns:
        y, like x in memory. A row's bits depend on its own group only: neither on other groups nor on how many
        rows or groups there are.
    """
    x, layout = arrange(x, grouped=True)
    y = torch.empty_like(x)
    largest = layout.rows if largest is None else largest
    sizes = plan(layout._replace(rows=max(largest, 1)), True, x.element_size(), limit)
    order, offsets = group_order(group, groups) if prepared is None else prepared
    company = Groups(order, offsets, tracked_weight, running_center, running_spread, groups)
    task = Task(kind, float(exponent), exponents, float(eps), float(rtol), max_steps)
    run(x, y, layout, sizes, Affine(weight, bias), None, task, company, largest)
    return y


def median(
    rows: Tensor,
    exponents: Tensor | None,
    start: Tensor | None,
    exponent: float,
    rtol: float,
    max_steps: int,
    *,
    limit: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Find the generalized geometric median of each row.

    Args:
        rows: float32 (R, m).
        exponents: phi of each row (R), or None for `exponent`.
        start: where the solver begins (R), as in `forward`.
        exponent: phi, in (1, 1e9].
        rtol: width of the bracket, in standard deviations.
        max_steps: passes at most.
        limit: as in `forward`.

    Returns:
        value, lower, upper (R), float32; steps and status (R), int64; mean and biased variance (R), float32.
    """
    rows = rows.contiguous()
    count, m = rows.shape
    layout = Layout(1, m, count, count * m, m, 1)
    sizes = plan(layout, False, 4, limit)
    task = Task(AUG, float(exponent), exponents, 0.0, float(rtol), max_steps)
    s = run(rows, None, layout, sizes, Affine(), start, task, Groups(), layout.rows)
    return s[0], s[4], s[5], s[6].to(torch.int64), s[7].to(torch.int64), s[8], s[9]


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    center: Tensor,
    spread: Tensor,
    first: Tensor,
    second: Tensor,
    exponents: Tensor | None,
    kind: int,
    exponent: float,
    eps: float,
    *,
    limit: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiate `forward` through the statistics.

    Args:
        dy: the gradient of y, its shape; any memory order.
        x: as given to `forward`.
        weight: likewise.
        center: (C), as `forward` gave it.
        spread: likewise.
        first: likewise.
        second: likewise.
        exponents: as given to `forward`.
        kind: likewise.
        exponent: likewise.
        eps: likewise.
        limit: likewise.

    Returns:
        dx, like x in memory and of its dtype; d weight, d bias and d exponents (C), float32, the last 0 where no
        exponents are given.
    """
    from augserve.norms.kernels.triton import backward as kernels  # Triton is loaded when it is needed

    x, layout = arrange(x, grouped=False)
    dy, dx = like(x, dy), torch.empty_like(x)
    sizes = plan(layout, False, x.element_size(), limit)
    parameters = torch.zeros(3, layout.channels, device=x.device)
    d_weight, d_bias, d_exponent = parameters
    if x.numel() == 0:
        return dx, d_weight, d_bias, d_exponent
    phi = exponent_class(kind, exponent, exponents)
    exponent, eps = float(exponent), float(eps)
    given = dy, x, dx, weight, center, spread, first, second, exponents
    tile = {"KIND": kind, "PHI": phi, "LEARNED": exponents is not None, **sizes.tile}
    with on_device(x):
        if layout.rows * layout.positions <= sizes.limit:
            kernels.differentiate_sets[(sizes.blocks,)](
                *given, parameters, exponent, eps, *layout, RESIDENT=sizes.resident, **tile
            )
            return dx, d_weight, d_bias, d_exponent
        grid = (sizes.blocks * sizes.splits,)
        partial = torch.empty(5, layout.channels, sizes.splits, device=x.device)
        work = sizes.blocks, sizes.splits, sizes.share
        if phi == ANY:
            kernels.reach_pass[grid](x, center, exponents, partial, exponent, *layout, *work, **sizes.tile)
        for write in (False, True):
            kernels.gradient_pass[grid](
                *given, partial, parameters, exponent, eps, *layout, *work,
                WRITE=write, SP=sizes.padded_splits, **tile,
            )  # fmt: skip
    return dx, d_weight, d_bias, d_exponent
