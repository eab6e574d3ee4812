"""What every norm layer with statistics holds and promises: its state, and its contract with `route`.

A layer normalizes with y = gamma * (x - center) / divisor + beta. Subclasses say how the center and the spread of
values are computed; `augserve.norms.route` decides which statistics apply to which rows, and how they are computed.
With a process group (`synchronize_statistics`), the batch of training is that of all its processes.

Source: torch.nn.BatchNorm for names, buffers, momentum and state-dict version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from augserve.errors import InputError, StatisticsError
from augserve.norms import route
from augserve.norms.grouping import Grouping
from augserve.norms.kernels.reference import power_of_range
from augserve.norms.kernels.spec import Ending, Spec
from augserve.norms.median.values import Values
from augserve.norms.processes import ProcessGroup
from augserve.norms.reduction import Reduction, require_floating
from augserve.operators import divisor, operator_named
from augserve.statistics import Statistics

Method = TypeVar("Method", bound=Callable[..., Any])


def formula(method: Method) -> Method:
    """Mark a method that kernels do in place of a layer: a subclass that changes it is computed by itself."""
    method.is_formula = True  # type: ignore[attr-defined]
    return method


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
        if "spec" in vars(cls):
            cls.kernels_know = True
        elif any(hasattr(getattr(StatisticsNorm, name, None), "is_formula") for name in vars(cls)):
            cls.kernels_know = False

    def reset_running_stats(self) -> None:
        """Set the running statistics to what they are before any batch."""
        if self.track_running_stats:
            center, spread = self.running()
            center.zero_()
            spread.fill_(self.initial_spread)
            self.get_buffer("num_batches_tracked").zero_()

    def reset_parameters(self) -> None:
        """Set gamma to 1, beta to 0 and the running statistics to their beginning."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    # What a subclass defines.

    @formula
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
    def operator(self) -> tuple[str, dict[str, float | int]]:
        """Return the name and attributes of the operator in graphs, one of `augserve.operators.OPERATORS`."""

    @formula
    def divisor(self, spread: Tensor) -> Tensor:
        """Return what x - center is divided by, (C,): as the operator's spread is."""
        name, attributes = self.operator()
        kind = operator_named(name).spread
        return divisor(spread, kind, attributes, root=torch.sqrt, power=power_of_range)

    @formula
    def unbiased(self, spread: Tensor, count: int) -> Tensor:
        """Return the spread as the running statistics take it; `count` values gave it."""
        is_variance = operator_named(self.operator()[0]).spread == "variance"
        return spread * (count / (count - 1)) if is_variance else spread

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

    @formula
    def normalize_batch(self, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, center and spread with x's own statistics; the last two carry no gradient.

        By the definition in plain torch, where neither a kernel nor the function over them takes x.
        """
        center, spread = self.group_statistics(x, over)
        return route.affine(self, x, center, self.divisor(spread)), center.detach(), spread.detach()

    def running(self) -> tuple[Tensor, Tensor]:
        """Return the running center and spread.

        Raises:
            StatisticsError: the layer keeps none.
        """
        center, spread = self.running_mean, getattr(self, self.spread)
        if center is None or spread is None:
            raise StatisticsError(
                f"{type(self).__name__} keeps no running statistics (track_running_stats=False): use the mode "
                "'batch', or build it with track_running_stats=True"
            )
        return center, spread

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x (N, C, *spatial); the shape and dtype of the result are those of x.

        Args:
            x: (N, C, *spatial).
            residual: added to what comes out, like x; None adds nothing.
            relu: return max(0, .) of all that. In training on the CPU this is done on the way, where a kernel is.
        """
        self._check_input(x)
        return route.forward(self, x, Ending(residual, relu))

    def _check_input(self, x: Tensor) -> None:
        if x.ndim not in self.ndims or x.shape[1] != self.num_features:
            kinds = " or ".join(f"{n}D" for n in self.ndims)
            raise InputError(
                f"{type(self).__name__} expected a {kinds} input with {self.num_features} channels in dimension 1; "
                f"got shape {tuple(x.shape)}"
            )
        require_floating(x, type(self).__name__)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, *rest: Any) -> None:
        key = f"{prefix}num_batches_tracked"
        older = metadata.get("version") is None or metadata["version"] < 2
        if older and self.track_running_stats and key not in state_dict:  # as torch.nn.BatchNorm takes it
            state_dict[key] = self.get_buffer("num_batches_tracked").clone()
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
