"""What the processes of test_processes do: each function runs in all of them, and returns what its process saw."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from augserve.errors import StatisticsError
from augserve.norms import (
    AugNorm1d,
    AugNorm2d,
    AugNorm3d,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    RobustNorm1d,
    RobustNorm2d,
    RobustNorm3d,
    StatisticsNorm,
    set_statistics,
    synchronize_statistics,
    use_statistics,
)
from augserve.norms.median.solve import solve
from augserve.norms.median.values import Stored
from augserve.norms.processes import Processes
from augserve.statistics import Statistics
from tests.tolerances import PROCESSES

PATIENCE_S = 180  # a group of processes that takes longer hangs
CHANNELS = 3
# Rows of each process in three steps of training, by the number of processes.
SIZES = {2: ((5, 2), (0, 4), (3, 3)), 3: ((5, 1, 2), (4, 0, 3), (0, 0, 6))}

Kinds = tuple[type[StatisticsNorm], ...]
AUG: Kinds = (AugNorm1d, AugNorm2d, AugNorm3d)
ROBUST: Kinds = (RobustNorm1d, RobustNorm2d, RobustNorm3d)
FAMILIES: dict[str, tuple[Kinds, dict[str, Any]]] = {
    "batch": ((BatchNorm1d, BatchNorm2d, BatchNorm3d), {}),
    "median": (AUG, {"phi": 1.0}),
    "aug-1.2": (AUG, {"phi": 1.2}),
    "aug-1.5": (AUG, {"phi": 1.5}),
    "aug-2": (AUG, {"phi": 2.0}),
    "aug-3": (AUG, {"phi": 3.0}),
    "midrange": (AUG, {"phi": math.inf}),
    "aug-learned": (AUG, {"learn_phi": True}),
    "robust": (ROBUST, {"track_running_stats": True}),
    "robust-range": (ROBUST, {"track_running_stats": True, "track": "range"}),
}
FEW = ("batch", "aug-1.5", "aug-learned", "robust")
DEFINED_ON_TIES = ("batch", "median", "aug-2", "midrange", "robust", "robust-range")


@dataclass(frozen=True)
class Case:
    """A layer, the shape of its rows, and its data."""

    family: str
    shape: tuple[int, ...] = (3, 4)  # of a row, without the channels
    dtype: torch.dtype = torch.float64
    affine: bool = True
    momentum: float | None = 0.1
    ties: bool = False

    def __str__(self) -> str:
        return f"{self.family}-{'x'.join(map(str, self.shape))}-{str(self.dtype)[6:]}{'-ties' if self.ties else ''}"

    def layer(self) -> StatisticsNorm:
        kinds, options = FAMILIES[self.family]
        kind = kinds[max(len(self.shape) - 1, 0)]
        layer = kind(CHANNELS, affine=self.affine, momentum=self.momentum, dtype=self.dtype, **options)
        with torch.no_grad():
            for k, parameter in enumerate(layer.parameters()):
                parameter.add_(torch.linspace(-0.5, 0.4 + k, CHANNELS, dtype=self.dtype))
        return layer

    def batch(self, step: int, rows: int) -> tuple[Tensor, Tensor]:
        """The rows of all processes, and the gradient of the loss in the layer's outputs."""
        x, upstream = (draw(rows, *self.shape, seed=10 * step + k).to(self.dtype) for k in range(2))
        if self.ties:
            x = x.round()
        elif self.dtype == torch.float32:
            # Values next to mu have a weight without bound where phi < 2: in it the rounding of mu shows.
            x = x + 0.3 * x.sign()
        return x + 0.5, upstream


ALL = [
    *(Case(family, dtype=dtype) for family in FAMILIES for dtype in PROCESSES),
    *(Case(family, ties=True) for family in DEFINED_ON_TIES),
    *(Case(family, (), affine=False, momentum=None) for family in (*FEW, "median")),
    *(Case(family, (7,), momentum=0.3) for family in (*FEW, "midrange")),
    *(Case(family, (2, 3, 2), affine=False) for family in (*FEW, "aug-3")),
]
CASES = {str(case): case for case in ALL}


def draw(rows: int, *shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, CHANNELS, *shape, generator=generator, dtype=torch.float64)


def train(layer: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """One step of training: outputs, gradients of the inputs and of the parameters."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(upstream)
    assert x.grad is not None
    of_parameters = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **of_parameters}


def state(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


# What the processes do: each function is run in all of them, and returns what its process saw.


def train_every_case(rank: int, world: int) -> dict[str, Any]:
    seen = {}
    for name, case in CASES.items():
        layer = case.layer()
        assert synchronize_statistics(layer) == ("",)
        steps = []
        for step, sizes in enumerate(SIZES[world]):
            x, upstream = case.batch(step, sum(sizes))
            steps.append(train(layer, x.split(sizes)[rank], upstream.split(sizes)[rank]))
        seen[name] = steps, state(layer)
    return seen


EXPONENTS = (1.0, 1.05, 1.2, 1.5, 1.9, 2.0, 2.5, 8.0, math.inf)
LEARNED = (1.1, 1.5, 1.9, 2.0, 2.4, 3.0)  # one for each row
SOLVERS: dict[str, float | Tensor] = {
    **{str(phi): phi for phi in EXPONENTS},
    "learned": torch.tensor(LEARNED, dtype=torch.float64)[:, None],
}


def solver_data() -> Tensor:
    normal = torch.randn(6, 300, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    clusters = 10 * normal[4].sign() + 0.1 * normal[5]
    constant = torch.full_like(normal[0], 3.7)
    rectified = normal[1].clamp_min(0), (normal[2] - 1).clamp_min(0)
    return torch.stack([normal[0], *rectified, normal[3].exp() * 1e150, clusters, constant])


def solve_for_every_exponent(rank: int, world: int) -> dict[str, Any]:
    rows = solver_data().split([1, 299] if world == 2 else [100, 0, 200], dim=1)[rank]
    values = Stored(rows, Processes.over(rows, (1,), None))
    seen = {}
    for name, phi in SOLVERS.items():
        with all_reduced() as sent:
            result, moments = solve(values, phi, 1e-12, 64, interior=isinstance(phi, Tensor))
        seen[name] = {**result._asdict(), **moments._asdict()}, sent
    return seen


def train_and_count(rank: int, world: int) -> dict[str, Any]:
    """The sums of one step, forward and backward; those of evaluation."""
    seen = {}
    for family in FAMILIES:
        layer = Case(family).layer()
        synchronize_statistics(layer)
        x, upstream = Case(family).batch(0, 4)
        with all_reduced() as forward:
            y = layer(x.requires_grad_())
        with all_reduced() as backward:
            y.backward(upstream)
        seen[family] = forward, backward
    return seen


def evaluate(rank: int, world: int) -> dict[str, Any]:
    """Sums of evaluation in each mode, with rows of the process's own; whether it is as without the others."""
    seen = {}
    for family in FAMILIES:
        layer, alone = Case(family).layer().eval(), Case(family).layer().eval()
        synchronize_statistics(layer)
        x = Case(family).batch(rank, 3 + rank)[0]
        for mode in (Statistics("tracked"), Statistics("batch"), Statistics("blend", prior=4)):
            set_statistics(layer, mode)
            set_statistics(alone, mode)
            with all_reduced() as sent:
                seen[family, mode.mode] = torch.equal(layer(x), alone(x)), sent
        with all_reduced() as sent, use_statistics(layer, Statistics("batch"), torch.arange(3 + rank) % 2):
            seen[family, "groups"] = bool(torch.isfinite(layer(x)).all()), sent
        seen[family, "empty"] = layer(x[:0]).shape == x[:0].shape, []
    return seen


def refuse(rank: int, world: int) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for family in FAMILIES:
        case = Case(family, ())
        layer = case.layer()
        synchronize_statistics(layer)
        before = state(layer)
        seen[family, "one value"] = message(lambda: layer(case.batch(0, int(rank == 1))[0]))  # noqa: B023
        with use_statistics(layer, Statistics("batch"), torch.zeros(3, dtype=torch.int64)):
            seen[family, "groups"] = message(lambda: layer(case.batch(0, 3)[0]))  # noqa: B023
        seen[family, "no rows"] = layer(torch.zeros(0, CHANNELS)).shape
        seen[family, "unchanged"] = all(torch.equal(a, b) for a, b in pairs(before, state(layer)))
    layer = Case("aug-1.5").layer()
    synchronize_statistics(layer)
    x, upstream = (part.requires_grad_() for part in Case("aug-1.5").batch(rank, 3))
    (d_x,) = torch.autograd.grad(layer(x), x, upstream, create_graph=True)
    seen["double backward"] = message(lambda: d_x.sum().backward())
    return seen


def train_with_wrong_values(rank: int, world: int) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for family in FAMILIES:
        for wrong in (None, math.nan, math.inf):
            layer = Case(family).layer()
            synchronize_statistics(layer)
            x, upstream = Case(family).batch(rank, 3)
            if wrong is not None and rank == world - 1:
                x[1, 1, 0, 0] = wrong
            seen[family, str(wrong)] = train(layer, x, upstream), state(layer)
    return seen


def train_in_a_part(rank: int, world: int) -> dict[str, Any]:
    """All but the first process share their statistics; the first is alone."""
    group = distributed.new_group(list(range(1, world)))
    seen: dict[str, Any] = {}
    for family in FAMILIES:
        case = Case(family)
        layer = case.layer()
        if rank == 0:
            seen[family, "refused"] = message(lambda: synchronize_statistics(layer, group))  # noqa: B023
        else:
            synchronize_statistics(layer, group)
        x, upstream = case.batch(rank, 2 + rank)
        seen[family] = train(layer, x, upstream), state(layer)
    return seen


def copy_and_undo(rank: int, world: int) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for family in FEW:
        case = Case(family)
        layer = case.layer()
        synchronize_statistics(layer)
        loaded = case.layer()
        synchronize_statistics(loaded)
        loaded.load_state_dict(layer.state_dict())
        x, upstream = case.batch(rank, 2)
        twins = loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))  # noqa: S301
        steps = [train(twin, x, upstream) for twin in (layer, *twins)]
        seen[family, "twins"] = all(torch.equal(a, b) for step in steps[1:] for a, b in pairs(steps[0], step))
        synchronize_statistics(layer, False)
        alone = case.layer()
        alone.load_state_dict(layer.state_dict())
        with all_reduced() as sent:
            steps = [train(each, x, upstream) for each in (layer, alone)]
        seen[family, "undone"] = not sent and all(torch.equal(a, b) for a, b in pairs(*steps))
    return seen


def network(norm: str) -> nn.Sequential:
    torch.manual_seed(0)
    (one, two, _), options = FAMILIES[norm]
    layers = (
        nn.Conv2d(CHANNELS, 4, 3),
        two(4, **options),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(8, 5),
        one(5, **options),
    )
    return nn.Sequential(*layers, nn.SiLU(), nn.Linear(5, 3)).double()


def fit(model: nn.Module, sizes: tuple[int, ...], rank: int | None) -> None:
    """Three steps down the mean loss over the rows of all processes; rank None holds all of them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        x, labels = draw(sum(sizes), 3, 4, seed=step), torch.arange(sum(sizes)) % 3
        if rank is not None:
            x, labels = x.split(sizes)[rank], labels.split(sizes)[rank]
        loss = F.cross_entropy(model(x), labels, reduction="sum") / sum(sizes)
        optimizer.zero_grad()
        # DistributedDataParallel divides the sum of the gradients by the number of processes.
        (loss if rank is None else loss * len(sizes)).backward()
        optimizer.step()


def fit_networks(rank: int, world: int) -> dict[str, Any]:
    seen = {}
    for norm in FEW:
        for sizes in ((4,) * world, SIZES[world][1]):
            model = network(norm)
            synchronize_statistics(model)
            fit(DistributedDataParallel(model), sizes, rank)
            seen[norm, sizes] = state(model)
    return seen


JOBS: tuple[Callable[[int, int], dict[str, Any]], ...] = (
    train_every_case,
    solve_for_every_exponent,
    train_and_count,
    evaluate,
    refuse,
    train_with_wrong_values,
    train_in_a_part,
    copy_and_undo,
    fit_networks,
)


# The processes.


def work(rank: int, world: int, folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder / 'meeting'}", timedelta(seconds=PATIENCE_S), world, rank
    )
    torch.save({job.__name__: job(rank, world) for job in JOBS}, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@contextmanager
def all_reduced() -> Iterator[list[tuple[torch.dtype, int]]]:
    """Note the dtype and the number of elements of all that is summed over processes."""
    sent: list[tuple[torch.dtype, int]] = []
    real = distributed.all_reduce

    def noting(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sent.append((tensor.dtype, tensor.numel()))
        return real(tensor, *args, **options)

    with mock.patch.object(distributed, "all_reduce", noting):
        yield sent


def message(call: Callable[[], object]) -> str:
    try:
        call()
    except (StatisticsError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def pairs(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    assert first.keys() == second.keys()
    return [(first[name], second[name]) for name in first]
