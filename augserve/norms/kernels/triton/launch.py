"""Which kernels a forward pass launches, in which order; nothing here waits for the device.

Small sets take one launch. Large ones take the sample, the moments, some passes of the solver (none where there is
no median to find), the end of the solver, and y. Both kinds of launches are made where groups may be of either
kind, which the host does not know: each kernel leaves the other's sets alone.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from augserve.norms.kernels.triton.plan import SAMPLE, Layout, Plan

AUG, ROBUST, ROBUST_RANGE = 0, 1, 2
MEAN, ROOT, UP_TO_2, ANY = range(4)  # as in `newton`
STATISTICS, STATE, PARTIAL, SEEDS = 10, 19, 6, 3  # fields of the buffers, as the kernels have them


class Groups(NamedTuple):
    """What the kernels need of groups and running statistics; None without."""

    order: Tensor | None = None
    offsets: Tensor | None = None
    tracked_weight: Tensor | None = None
    running_center: Tensor | None = None
    running_spread: Tensor | None = None
    groups: int = 1


class Affine(NamedTuple):
    """Gamma and beta, (C) each, None for 1 and 0."""

    weight: Tensor | None = None
    bias: Tensor | None = None


class Task(NamedTuple):
    """What is to be computed: the kind of norm, its exponent, and how precisely."""

    kind: int
    exponent: float
    exponents: Tensor | None
    eps: float
    rtol: float
    max_steps: int

    @property
    def phi(self) -> int:
        """The class of exponents that the kernels are compiled for."""
        return exponent_class(self.kind, self.exponent, self.exponents)

    @property
    def passes(self) -> int:
        """How many passes over large sets are launched after that of the moments.

        Most large sets need two or three. A pass with nothing left to do reads nothing, but costs a launch; the few
        sets that need more, since their median lies next to a value that they hold many times, are finished by one
        program each.
        """
        if self.phi == MEAN:
            return 0
        return 10 if self.exponents is None and self.exponent < 1.4 else 6


def exponent_class(kind: int, exponent: float, exponents: Tensor | None) -> int:
    """Return the class of exponents that the kernels are compiled for."""
    if kind != AUG:
        return MEAN
    if exponents is not None:
        return ANY
    if exponent in (1.5, 2.0):
        return ROOT if exponent == 1.5 else MEAN
    return UP_TO_2 if exponent < 2 else ANY


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make x's device the current one, which Triton launches on."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def run(
    x: Tensor, y: Tensor | None, layout: Layout, sizes: Plan, affine: Affine, start: Tensor | None, task: Task,
    groups: Groups, largest: int,
) -> Tensor:  # fmt: skip
    """Compute the statistics (10, G * C), and y where it is given; no set has more rows than `largest`."""
    sets = groups.groups * layout.channels
    statistics = torch.empty(STATISTICS, sets, dtype=torch.float32, device=x.device)
    if x.numel() == 0 or sets == 0:
        return statistics.fill_(torch.nan)
    with on_device(x):
        values = largest * layout.positions
        if groups.order is not None or values <= sizes.limit:
            _solve(x, y, layout, sizes, affine, start, task, groups, statistics, None)
        if values > sizes.limit:
            _large(x, y, layout, sizes, affine, task, groups, statistics)
    return statistics


def _solve(
    x: Tensor, y: Tensor | None, layout: Layout, sizes: Plan, affine: Affine, start: Tensor | None, task: Task,
    groups: Groups, statistics: Tensor, left: tuple[Tensor | None, Tensor, Tensor] | None,
) -> None:  # fmt: skip
    """Launch `solve_sets`: for small sets, or for large ones with the state, partial sums and seeds `left`."""
    from augserve.norms.kernels.triton.solve import solve_sets

    memory, partial, seeds = left or (None, None, None)
    solve_sets[(sizes.blocks * groups.groups,)](
        x, y, *groups[:5], *affine, task.exponents, start, statistics, memory, partial, seeds,
        task.exponent, task.eps, task.rtol, task.max_steps, *layout, statistics.shape[1], sizes.blocks,
        sizes.splits, sizes.share, sizes.limit,
        KIND=task.kind, PHI=task.phi, FRESH=left is None, FIRST=memory is None,
        RESIDENT=sizes.resident and left is None, SP=sizes.padded_splits, **sizes.tile,
    )  # fmt: skip


def _large(
    x: Tensor, y: Tensor | None, layout: Layout, sizes: Plan, affine: Affine, task: Task, groups: Groups,
    statistics: Tensor,
) -> None:  # fmt: skip
    from augserve.norms.kernels.triton import passes
    from augserve.norms.kernels.triton.solve import normalize

    sets = statistics.shape[1]
    seeds, partials, memories = _buffers(x, sets, sizes.splits, 2 if task.passes else 0)
    values = *groups[:3], task.exponents, seeds
    whole = *layout, sets, sizes.blocks
    split = *whole, sizes.splits, sizes.share, sizes.limit
    grid = (sizes.blocks * sizes.splits * groups.groups,)
    sampled = max(SAMPLE // (sizes.BN * sizes.BL), 1)
    passes.sample_sets[(sizes.blocks * groups.groups,)](
        x, *values, task.exponent, *whole, sizes.limit, sampled, PHI=task.phi, **sizes.sample_tile
    )
    passes.moments_pass[grid](x, *values, partials[0], task.exponent, *split, PHI=task.phi, **sizes.tile)
    memory = None
    for k in range(task.passes):
        passes.newton_pass[grid](
            x, *values, partials[k % 2], memory, partials[(k + 1) % 2], memories[k % 2],
            task.exponent, task.rtol, task.max_steps, *split, 1 - k % 2,
            PHI=task.phi, FIRST=memory is None, SP=sizes.padded_splits, **sizes.tile,
        )  # fmt: skip
        memory = memories[k % 2]
    left = memory, partials[task.passes % 2], seeds
    _solve(x, None, layout, sizes, affine, None, task, groups, statistics, left)
    if y is not None:
        normalize[grid](
            x, y, *groups[:5], *affine, statistics, task.exponent, task.eps, *split, KIND=task.kind, **sizes.tile
        )


def _buffers(x: Tensor, sets: int, splits: int, states: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return memory for the seeds, for partial sums (two where there are passes) and for states."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    partials = [empty(PARTIAL, sets, splits) for _ in range(max(states, 1))]
    return empty(SEEDS, sets), partials, [empty(STATE, sets) for _ in range(states)]
