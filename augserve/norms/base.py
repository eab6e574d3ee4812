"""The shape that every norm layer shares: buffers, modes, groups, and the way of one batch through them.

A layer normalizes with y = gamma * (x - center) / divisor + beta. Subclasses say how a group's own center and
spread are computed and what divisor a spread gives; this file decides which statistics apply to which rows:

- training: the batch's own (of each group, where groups are set: ghost batch normalization), and the running
  statistics move toward them;
- inference: what the layer's `Statistics` say, for each group by itself.

With a process group (`synchronize_statistics`), the batch of training is that of all its processes together.

Source: torch.nn.BatchNorm for names, buffers, momentum and state-dict version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from augserve.errors import InputError, StatisticsError
from augserve.norms.fused import covers, ended, ends_now, normalize, plain, runs_now, train
from augserve.norms.grouping import Grouping, weighted
from augserve.norms.kernels.operators import has_kernel, norm_grouped
from augserve.norms.kernels.spec import Ending, Groups, Moving, Spec
from augserve.norms.median.values import Values
from augserve.norms.processes import Processes, ProcessGroup
from augserve.norms.reduction import Local, Reduction, along_channels, reduced_dims, require_floating
from augserve.norms.symbolic import norm_node
from augserve.statistics import Statistics

# What a kernel does in place of a layer.
FORMULAS = frozenset(
    (
        "group_statistics",
        "divisor",
        "unbiased",
        "normalize_batch",
        "spread_of",
        "_affine",
        "_update_running",
        "_train",
    )
)


class StatisticsNorm(nn.Module, ABC):
    """The base of the norm layers over (N, C, *spatial); not used by itself.

    Args:
        num_features: C.
        eps: added to the variance or the denominator.
        momentum: weight of the newest batch in the running statistics; None averages all batches evenly.
        affine: learn gamma (weight) and beta (bias), each (C,).
        track_running_stats: keep running statistics; without them the mode is "batch" and cannot be "tracked".
        device: of the parameters and buffers.
        dtype: of the parameters and buffers.
    """

    kernels_know = False  # whether no subclass has changed the formulas since `spec` was defined; see below
    _version = 2  # of the state dict, as torch.nn.BatchNorm: num_batches_tracked is there
    ndims: tuple[int, ...] = ()  # the dimensions an input may have
    spread: str = "running_var"  # the buffer of the tracked spread
    initial_spread = 1.0

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.statistics = Statistics("tracked" if track_running_stats else "batch")
        self.grouping: Grouping | None = None
        self.process_group: ProcessGroup | Literal[False] | None = False  # False: alone, None: all processes
        for name in ("weight", "bias"):
            value = torch.empty(num_features, device=device, dtype=dtype) if affine else None
            self.register_parameter(name, None if value is None else nn.Parameter(value))
        kept = track_running_stats
        for name in ("running_mean", self.spread):
            self.register_buffer(name, torch.empty(num_features, device=device, dtype=dtype) if kept else None)
        count = torch.zeros((), dtype=torch.int64, device=device) if kept else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls)
        if "spec" in own:
            cls.kernels_know = True
        elif not FORMULAS.isdisjoint(own):  # a subclass with formulas of its own, which no kernel has
            cls.kernels_know = False

    def reset_running_stats(self) -> None:
        """Set the running statistics to what they are before any batch."""
        if self.track_running_stats:
            self._buffer("running_mean").zero_()
            self._buffer(self.spread).fill_(self.initial_spread)
            self._buffer("num_batches_tracked").zero_()

    def reset_parameters(self) -> None:
        """Set gamma to 1, beta to 0 and the running statistics to their beginning."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    # What a subclass defines.

    @abstractmethod
    def group_statistics(self, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor]:
        """Return the center and the (biased) spread of x's own values, (C,) each, differentiable.

        Written with `over`, how the values of a channel are summed up, those of all processes count where these
        are synchronised.
        """

    @abstractmethod
    def statistics_over(self, values: Values) -> tuple[Tensor, Tensor]:
        """Return the center and the (biased) spread of a data set's values, (C, 1) each; see `calibrate`."""

    @abstractmethod
    def divisor(self, spread: Tensor) -> Tensor:
        """Return what x - center is divided by, (C,)."""

    def unbiased(self, spread: Tensor, count: int) -> Tensor:
        """Return the spread as the running statistics take it; `count` values gave it."""
        return spread

    def spec(self) -> Spec | None:
        """Return the norm as the kernels know it, or None; asked only where `kernels_know`."""
        return None

    def kernel_spec(self) -> Spec | None:
        """Return `spec`, or None where a subclass has formulas of its own."""
        return self.spec() if self.kernels_know else None

    def exponents(self) -> Tensor | None:
        """Return phi of each channel (C,), or None where it is one number."""
        return None

    def start(self) -> Tensor | None:
        """Return where the solver begins (C,), or None for the mean."""
        return None

    def spread_of(self, measured: Tensor) -> Tensor:
        """Return the spread that a kernel measured, (C,), as `divisor` and the running statistics take it."""
        return measured

    def normalize_batch(self, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, center and spread with x's own statistics; the last two carry no gradient.

        In plain torch, where no kernel takes x.
        """
        center, spread = self.group_statistics(x, over)
        return self._affine(x, center, self.divisor(spread)), center.detach(), spread.detach()

    @abstractmethod
    def operator(self) -> tuple[str, dict[str, float | int]]:
        """Return the name and attributes of the exported operator (domain augserve)."""

    # The way of a batch.

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x (N, C, *spatial); the shape and dtype of the result are those of x.

        Args:
            x: (N, C, *spatial).
            residual: added to what comes out, like x; None adds nothing.
            relu: return max(0, .) of all that. In training on the CPU this is done on the way, where a kernel is.
        """
        self._check_input(x)
        ending = Ending(residual, relu)
        if self.training and (y := self._train_now(x, ending)) is not None:
            return y
        return ended(self._without_ending(x), ending)

    def _without_ending(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return norm_node(self, x)
        if x.shape[0] == 0 and not self.synchronised:
            return self._without_rows(x)
        if self.training:
            return self._train(x)
        return self._infer(x, self.statistics) if self.grouping is None else self._infer_groups(x, self.grouping)

    @property
    def synchronised(self) -> bool:
        """Whether the batch is that of all processes: in training, with a process group, where there are any."""
        if not self.training or self.process_group is False:
            return False
        return distributed.is_available() and distributed.is_initialized()

    def reduction(self, x: Tensor) -> Reduction:
        """Return how the values of a channel are summed up: in this batch, or over all processes in training."""
        dims = reduced_dims(x)
        if self.synchronised:
            return Processes.over(x, dims, self.process_group)
        return Local(dims)

    def _train_now(self, x: Tensor, ending: Ending) -> Tensor | None:
        """Do all of a training step's work in one call of a native kernel, or return None where that cannot be."""
        if self.grouping is not None or self.process_group is not False or not runs_now(x):
            return None
        spec = self.kernel_spec()
        if spec is None or not has_kernel(spec) or x.shape[0] == 0:
            return None
        moving, count = None, x.numel() // x.shape[1]
        if count <= 1:
            self._require_values(count, x)
        # Looked up where nn.Module keeps them: on small data its attribute access is seen.
        parameters, buffers = self._parameters, self._buffers
        if self.track_running_stats:
            center, spread, batches = buffers["running_mean"], buffers[self.spread], buffers["num_batches_tracked"]
            if self.momentum is None or center is None or spread is None or batches is None:
                return None
            if center.dtype != torch.float32 or spread.dtype != torch.float32 or center.device != x.device:
                return None
            batches.add_(1)
            moving = Moving(center, spread, self.momentum, count / (count - 1))
        given = parameters["weight"], parameters["bias"], self.exponents(), self.start()
        if ends_now(x, ending):
            return train(x, *given, spec, moving, ending)
        return ended(train(x, *given, spec, moving), ending)

    def _train(self, x: Tensor) -> Tensor:
        if self.grouping is not None and self.synchronised:
            raise StatisticsError(
                f"{type(self).__name__}: row groups and synchronised statistics exclude each other in training; "
                "leave out `group`, or call synchronize_statistics(module, False)"
            )
        parts = [x] if self.grouping is None else [x[rows] for rows in self.grouping.rows(x.shape[0])]
        outputs, updates = [], []
        for part in parts:
            over = self.reduction(part)
            if isinstance(over, Processes) and over.total == 0:  # no process has a row
                return self._without_rows(x)
            count = self._values_per_channel(part, over)
            y, center, spread = self._normalize(part, over)
            outputs.append(y)
            updates.append((part.shape[0] / max(x.shape[0], 1), center, self.unbiased(spread, count)))
        if self.grouping is None:
            self._update_running(*updates[0][1:])
            return outputs[0]
        shares, centers, spreads = zip(*updates, strict=True)
        self._update_running(weighted(shares, centers), weighted(shares, spreads))
        return self.grouping.join(outputs)

    def _normalize(self, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor, Tensor]:
        """`normalize_batch`, by a kernel where there is one."""
        spec = None if self.synchronised else self.kernel_spec()
        if spec is None or not covers(x, spec):
            return self.normalize_batch(x, over)
        y, statistics = normalize(x, self.weight, self.bias, self.exponents(), self.start(), spec)
        return y, statistics[0], self.spread_of(statistics[1])

    def _infer_groups(self, x: Tensor, grouping: Grouping) -> Tensor:
        """Normalize each group by itself: at once by a kernel where no gradient is wanted, else one by one."""
        spec = None if torch.is_grad_enabled() else self.kernel_spec()
        rows_of_groups = grouping.rows(x.shape[0])
        if spec is not None and covers(x, spec):
            for rows, statistics in zip(grouping.sizes, grouping.statistics, strict=True):
                if statistics.fixed_weight != 1.0:
                    self._require_values(rows * (x.numel() // max(x.shape[0] * x.shape[1], 1)), x)
            return self._blend(x, spec, grouping.groups, grouping.tracked_weight)
        return grouping.join(
            [self._infer(x[rows], s) for rows, s in zip(rows_of_groups, grouping.statistics, strict=True)]
        )

    def _blend(self, x: Tensor, spec: Spec, groups: Groups | None, tracked_weight: Tensor) -> Tensor:
        running: tuple[Tensor | None, Tensor | None] = None, None
        if self.track_running_stats:
            running = plain(self._buffer("running_mean")), plain(self._buffer(self.spread))
        parameters = map(plain, (self.weight, self.bias, self.exponents()))
        order, offsets = groups or (None, None)
        y: Tensor = norm_grouped(x, *parameters, *running, order, offsets, tracked_weight, *spec)
        return y

    def _infer(self, x: Tensor, statistics: Statistics) -> Tensor:
        fixed = statistics.fixed_weight
        if (
            fixed != 0.0
            and not torch.is_grad_enabled()
            and runs_now(x)
            and (spec := self.kernel_spec()) is not None
        ):
            weight = 1.0 if fixed == 1.0 else statistics.weight(x.shape[0])
            self._buffer("running_mean")  # or an error that says what to do
            if weight != 1.0:
                self._require_values(x.numel() // x.shape[1], x)
            if has_kernel(spec):
                return self._blend(x, spec, None, torch.full((1,), weight))
        if fixed == 1.0:
            return self._affine(x, self._buffer("running_mean"), self.divisor(self._buffer(self.spread)))
        over = self.reduction(x)
        self._values_per_channel(x, over)
        if fixed == 0.0:
            return self._normalize(x, over)[0]
        weight = statistics.weight(x.shape[0])
        center, spread = self.group_statistics(x, over)
        center = weight * self._buffer("running_mean") + (1 - weight) * center
        spread = weight * self._buffer(self.spread) + (1 - weight) * spread
        return self._affine(x, center, self.divisor(spread))

    @torch.no_grad()
    def _update_running(self, center: Tensor, spread: Tensor) -> None:
        """Move the running statistics toward those of a batch: of several groups, their row-weighted mean."""
        if not self.track_running_stats:
            return
        count = self._buffer("num_batches_tracked")
        count.add_(1)
        for name, batch in (("running_mean", center), (self.spread, spread)):
            running = self._buffer(name)
            cumulative = count.double().reciprocal().to(running.dtype)
            running.lerp_(batch.to(running.dtype), cumulative if self.momentum is None else self.momentum)

    def _affine(self, x: Tensor, center: Tensor, divisor: Tensor) -> Tensor:
        """Return gamma * (x - center) / divisor + beta, computed in float32 or better."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        scale = divisor.to(dtype).reciprocal()
        if self.weight is not None:
            scale = scale * self.weight.to(dtype)
        shift = -center.to(dtype) * scale
        if self.bias is not None:
            shift = shift + self.bias.to(dtype)
        y = torch.addcmul(along_channels(shift, x), x.to(dtype), along_channels(scale, x))
        return y.to(x.dtype)

    def _buffer(self, name: str) -> Tensor:
        value = getattr(self, name)
        if not isinstance(value, Tensor):
            raise StatisticsError(
                f"{type(self).__name__} keeps no running statistics (track_running_stats=False): use the mode "
                "'batch', or build it with track_running_stats=True"
            )
        return value

    def _check_input(self, x: Tensor) -> None:
        if x.ndim not in self.ndims or x.shape[1] != self.num_features:
            kinds = " or ".join(f"{n}D" for n in self.ndims)
            raise InputError(
                f"{type(self).__name__} expected a {kinds} input with {self.num_features} channels in dimension 1; "
                f"got shape {tuple(x.shape)}"
            )
        require_floating(x, type(self).__name__)

    def _without_rows(self, x: Tensor) -> Tensor:
        """Return the answer to an empty batch; no statistics come of it."""
        if self.grouping is not None:
            self.grouping.rows(0)
        zeros = torch.zeros(self.num_features, device=x.device)
        return self._affine(x, zeros, zeros + 1)

    def _values_per_channel(self, x: Tensor, over: Reduction) -> int:
        """Return how many values give a channel's statistics, or raise StatisticsError where it is one."""
        count = over.count(x)
        assert not isinstance(count, Tensor)  # noqa: S101 - counts of these reductions are numbers
        self._require_values(count, x)
        return count

    def _require_values(self, count: int, x: Tensor) -> None:
        if count <= 1:
            raise StatisticsError(
                f"{type(self).__name__} expected more than 1 value per channel for statistics of its own; "
                f"got input size {tuple(x.shape)}; use larger groups or tracked statistics"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, *rest: Any) -> None:
        key = f"{prefix}num_batches_tracked"
        older = metadata.get("version") is None or metadata["version"] < 2
        if older and self.track_running_stats and key not in state_dict:  # as torch.nn.BatchNorm takes it
            state_dict[key] = self._buffer("num_batches_tracked").clone()
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)

    def extra_repr(self) -> str:
        """The constructor's arguments, as torch.nn.BatchNorm shows them."""
        own = "".join(f", {k}={v}" for k, v in self._own_options().items())
        return (
            f"{self.num_features}{own}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )

    def _own_options(self) -> dict[str, Any]:
        return {}
