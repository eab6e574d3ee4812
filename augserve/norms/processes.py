"""Statistics over the batches of several processes (torch.distributed), as nn.SyncBatchNorm takes them.

Every sum of a layer becomes a sum over all processes: the mean and the variance, the range, and the sums of each
pass of the median's solver. All processes see the same sums, so they take the same decisions and hold the same
bracket, bit for bit. Batches may be of different sizes, and empty. Gradients flow through the statistics into
every process's values; a parameter's gradient is that of the process's own rows, as DistributedDataParallel wants.

Whoever waits for the others must be waited for: what is sent, and how often, depends on nothing but what all
processes know (the shape of the channels, the total count, sums of all), never on a process's own rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed
from typing_extensions import override

from augserve.errors import StatisticsError
from augserve.norms.median.gradient import influence, sensitivity
from augserve.norms.median.solve import solve
from augserve.norms.median.values import Stored
from augserve.norms.reduction import Reduction, as_rows

# Typed loosely: torch.distributed has no ProcessGroup where torch was built without it.
ProcessGroup = Any


def check_group(group: ProcessGroup) -> None:
    """Raise StatisticsError where torch.distributed is not initialised, or this process is not in the group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        raise StatisticsError(
            "synchronised statistics need torch.distributed: call torch.distributed.init_process_group first, or "
            "synchronize_statistics(module, False) for a single process"
        )
    if distributed.get_rank(group) < 0:
        raise StatisticsError(
            f"process {distributed.get_rank()} is not in the process group that it was given: give it the group "
            "that it belongs to, or call synchronize_statistics(module, False) in it"
        )


@dataclass(frozen=True)
class Processes(Reduction):
    """Sets along dimensions of each process's tensor and over all processes of a group.

    Args:
        dims: the dimensions.
        group: of torch.distributed.
        total: values of a set in all processes.
        rows: the sets whose statistics are wanted, of x (R, m); None: all. Theirs alone are sent, but all are
            summed: in a tensor of another shape a power of the same value may be rounded otherwise, and a set's
            bits would depend on when others are done.
        size: R, where there are `rows`.
    """

    dims: tuple[int, ...]
    group: ProcessGroup
    total: int
    rows: Tensor | None = None
    size: int = 0

    @classmethod
    def over(cls, x: Tensor, dims: tuple[int, ...], group: ProcessGroup) -> Processes:
        """Return the reduction of x (of any size, also 0, in each process) along `dims`; waits for the device."""
        check_group(group)
        own = math.prod(x.shape[d] for d in dims)
        total = torch.tensor(own, dtype=torch.int64, device=x.device)
        distributed.all_reduce(total, group=group)
        return cls(dims, group, int(total))

    @override
    def sum(self, x: Tensor) -> Tensor:
        return _AllReduce.apply(x.sum(dim=self.dims, keepdim=True), self.group)  # type: ignore[no-any-return, no-untyped-call]

    @override
    def sums(self, parts: Iterable[Tensor]) -> list[Tensor]:
        own = torch.stack([part.sum(dim=self.dims, keepdim=True) for part in parts])
        if self.rows is not None:
            own = own[:, self.rows]
        return list(_AllReduce.apply(own, self.group))  # type: ignore[no-untyped-call]

    @override
    def amax(self, x: Tensor) -> Tensor:
        return _Extreme.apply(x, self, True)  # type: ignore[no-any-return, no-untyped-call]

    @override
    def amin(self, x: Tensor) -> Tensor:
        return _Extreme.apply(x, self, False)  # type: ignore[no-any-return, no-untyped-call]

    @override
    def each(self, statistic: Tensor) -> Tensor:
        if self.rows is None:
            return statistic
        return statistic.new_zeros((self.size, 1)).index_copy(0, self.rows, statistic)

    @override
    def count(self, x: Tensor) -> int | Tensor:
        return self.total

    @override
    def select(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Reduction] | None:
        wanted = rows if self.rows is None else self.rows[rows]
        return x, replace(self, rows=wanted, size=x.shape[0])

    def median(self, x: Tensor, phi: float | Tensor, rtol: float, max_steps: int) -> Tensor:
        """Return the generalized median of each set, differentiable in x and in exponents in (1, inf)."""
        exponents = phi if isinstance(phi, Tensor) else None
        exponent = math.nan if isinstance(phi, Tensor) else phi
        return _Median.apply(x, exponents, exponent, self, rtol, max_steps)  # type: ignore[no-any-return, no-untyped-call]


class _AllReduce(torch.autograd.Function):
    """The sum over the processes; its gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(grads[0], ctx.group), None  # type: ignore[no-untyped-call]


class _Extreme(torch.autograd.Function):
    """The largest or the smallest value over the processes; its gradient is split evenly among all ties."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, over: Processes, largest: bool) -> Tensor:
        shape = [1 if d in over.dims else n for d, n in enumerate(x.shape)]
        end = x.new_full(shape, -math.inf)
        if x.numel():
            end = x.amax(over.dims, keepdim=True) if largest else -x.amin(over.dims, keepdim=True)
        # What a maximum over processes makes of NaN depends on the backend and on the order of the processes.
        wrong = torch.isnan(end)
        both = torch.stack([end.masked_fill(wrong, -math.inf), wrong.to(x.dtype)])
        distributed.all_reduce(both, distributed.ReduceOp.MAX, group=over.group)
        end = both[0].masked_fill(both[1] > 0, math.nan)
        end = end if largest else -end
        ctx.save_for_backward(x, end)
        ctx.over = over
        return end

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, end = ctx.saved_tensors
        ties = (x == end).to(x.dtype)
        own = torch.stack([grads[0], ties.sum(dim=ctx.over.dims, keepdim=True)])
        grad, count = _AllReduce.apply(own, ctx.over.group)  # type: ignore[no-untyped-call]
        return ties * (grad / count), None, None


class _Median(torch.autograd.Function):
    """The generalized median over the processes; its gradient is that of `augserve.norms.median.gradient`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, exponents: Tensor | None, phi: float, over: Processes, rtol: float, max_steps: int
    ) -> Tensor:
        rows = Stored(as_rows(x, over.dims), Processes((1,), over.group, over.total))
        shape = [1 if d in over.dims else n for d, n in enumerate(x.shape)]
        each = None if exponents is None else exponents.expand(shape).reshape(-1, 1)
        result, _ = solve(rows, phi if each is None else each, rtol, max_steps, interior=True)
        mu = result.value.reshape(shape)
        ctx.save_for_backward(x, exponents, mu)
        ctx.phi, ctx.over = phi, over
        return mu

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, exponents, mu = ctx.saved_tensors
        d_mu, over = grads[0], ctx.over
        phi = ctx.phi if exponents is None else exponents.expand_as(mu)
        d_x = influence(x, mu, phi, over, _summed(d_mu, over.group), interior=True)
        d_phi = None
        if exponents is not None and ctx.needs_input_grad[1]:
            d_phi = (d_mu * sensitivity(x, mu, phi, over)).sum_to_size(exponents.shape)
        return d_x, d_phi, None, None, None, None


def _summed(x: Tensor, group: ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total, group=group)
    return total
