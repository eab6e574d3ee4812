"""Statistics over the batches of several processes (torch.distributed), as nn.SyncBatchNorm takes them.

Every sum of a layer becomes a sum over all processes: the mean and the variance, the range, and both sums of each
pass of the median's solver. All processes see the same sums, so they take the same decisions and hold the same
bracket, bit for bit. Batches may be of different sizes, and empty. Gradients flow through the statistics into
every process's values; a parameter's gradient is that of the process's own rows, as DistributedDataParallel wants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from typing_extensions import override

from augserve.norms.median.gradient import influence, sensitivity
from augserve.norms.median.solve import solve
from augserve.norms.median.values import Values
from augserve.norms.reduction import Reduction, as_rows

# Typed loosely: torch.distributed has no ProcessGroup where torch was built without it.
ProcessGroup = Any


@dataclass(frozen=True)
class Processes(Reduction):
    """Sets along dimensions of each process's tensor and over all processes of a group.

    Args:
        dims: the dimensions.
        group: of torch.distributed.
        total: values of a set in all processes.
    """

    dims: tuple[int, ...]
    group: ProcessGroup
    total: int

    @classmethod
    def over(cls, x: Tensor, dims: tuple[int, ...], group: ProcessGroup) -> Processes:
        """Return the reduction of x (of any size, also 0, in each process) along `dims`."""
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
        return list(_AllReduce.apply(own, self.group))  # type: ignore[no-untyped-call]

    @override
    def amax(self, x: Tensor) -> Tensor:
        empty = x.new_full([1 if d in self.dims else n for d, n in enumerate(x.shape)], -math.inf)
        largest = x.detach().amax(dim=self.dims, keepdim=True) if x.numel() else empty
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=self.group)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return largest
        ties = x == largest
        return self.sum(torch.where(ties, x, 0.0)) / self.sum(ties.to(x.dtype))

    @override
    def amin(self, x: Tensor) -> Tensor:
        return -self.amax(-x)

    @override
    def each(self, statistic: Tensor) -> Tensor:
        return statistic

    @override
    def count(self, x: Tensor) -> int | Tensor:
        return self.total

    def median(self, x: Tensor, phi: float | Tensor, rtol: float, max_steps: int) -> Tensor:
        """Return the generalized median of each set, differentiable in x and in exponents in (1, inf)."""
        exponents = phi if isinstance(phi, Tensor) else None
        exponent = math.nan if isinstance(phi, Tensor) else phi
        return _Median.apply(x, exponents, exponent, self, rtol, max_steps)  # type: ignore[no-any-return, no-untyped-call]


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(grads[0], ctx.group), None  # type: ignore[no-untyped-call]


class _Median(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, exponents: Tensor | None, phi: float, over: Processes, rtol: float, max_steps: int
    ) -> Tensor:
        rows = Values(as_rows(x, over.dims), Processes((1,), over.group, over.total))
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
        everywhere = d_mu.clone()
        distributed.all_reduce(everywhere, group=over.group)
        phi = ctx.phi if exponents is None else exponents.expand_as(mu)
        d_x = influence(x, mu, phi, over, everywhere, interior=True)
        d_phi = None
        if exponents is not None:
            d_phi = (d_mu * sensitivity(x, mu, phi, over)).sum_to_size(exponents.shape)
        return d_x, d_phi, None, None, None, None
