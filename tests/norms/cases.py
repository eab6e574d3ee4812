"""Every norm layer there is, with an input for it: what the contract suite runs over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from augserve.norms import (
    AugGraphNorm,
    AugGroupNorm,
    AugInstanceNorm1d,
    AugInstanceNorm2d,
    AugInstanceNorm3d,
    AugLayerNorm,
    AugNorm1d,
    AugNorm2d,
    AugNorm3d,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    ConvNorm2d,
    GraphNorm,
    RobustNorm1d,
    RobustNorm2d,
    RobustNorm3d,
    StatisticsNorm,
)

CHANNELS = 4
SHAPES = {
    "1d": (6, CHANNELS),
    "1d+L": (6, CHANNELS, 5),
    "2d": (6, CHANNELS, 3, 5),
    "3d": (6, CHANNELS, 2, 3, 2),
    "nodes": (9, CHANNELS),
}
GRAPHS = (0, 0, 2, 2, 2, 2, 0, 3, 2)  # of five: one has a single node, two are empty
NUM_GRAPHS = 5


@dataclass(frozen=True)
class Case:
    """A way to build a norm layer, and the shape it takes."""

    build: Callable[..., nn.Module]
    shape: str = "2d"
    options: tuple[tuple[str, Any], ...] = ()

    def layer(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A layer whose parameters are not at their beginning."""
        torch.manual_seed(1)
        layer = self.build(dtype=dtype, **dict(self.options))
        for name, parameter in layer.named_parameters():
            if name != "weight" or not isinstance(layer, ConvNorm2d):
                nn.init.normal_(parameter, 1.0 if name == "weight" else 0.0, 0.3)
        return layer

    def input(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(SHAPES[self.shape], generator=generator, dtype=torch.float64) * 2 + 1).to(dtype)

    @property
    def is_graph(self) -> bool:
        return self.shape == "nodes"

    @property
    def has_statistics(self) -> bool:
        return isinstance(self.layer(), StatisticsNorm)


class OnGraphs(nn.Module):
    """A graph layer with the graphs of its nodes bound, so that it takes one input as the others do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x, torch.tensor(GRAPHS, device=x.device)[: x.shape[0]], NUM_GRAPHS)
        return y


def on_graphs(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    return lambda **options: OnGraphs(kind(CHANNELS, **options))


def of(kind: type[nn.Module], *sizes: Any) -> Callable[..., nn.Module]:
    return lambda **options: kind(*(sizes or (CHANNELS,)), **options)


LEARNED = (("learn_phi", True),)
TRACKED = (("track_running_stats", True),)

CASES: dict[str, Case] = {
    "batch-1d": Case(of(BatchNorm1d), "1d"),
    "batch": Case(of(BatchNorm2d)),
    "batch-3d": Case(of(BatchNorm3d), "3d"),
    "batch-plain": Case(of(BatchNorm2d), options=(("affine", False), ("momentum", None))),
    "aug-1d": Case(of(AugNorm1d), "1d"),
    "aug-1d+L": Case(of(AugNorm1d), "1d+L"),
    "aug": Case(of(AugNorm2d)),
    "aug-3d": Case(of(AugNorm3d), "3d"),
    "aug-1.1": Case(of(AugNorm2d), options=(("phi", 1.1),)),
    "aug-3": Case(of(AugNorm2d), options=(("phi", 3.0),)),
    "aug-warm": Case(of(AugNorm2d), options=(("warm_start", True),)),
    "aug-learned": Case(of(AugNorm2d), options=LEARNED),
    "median": Case(of(AugNorm2d), options=(("phi", 1.0),)),
    "midrange": Case(of(AugNorm2d), options=(("phi", math.inf),)),
    "robust-1d": Case(of(RobustNorm1d), "1d", TRACKED),
    "robust": Case(of(RobustNorm2d), options=TRACKED),
    "robust-range": Case(of(RobustNorm2d), options=(*TRACKED, ("track", "range"))),
    "robust-3d": Case(of(RobustNorm3d), "3d", TRACKED),
    "instance-1d": Case(of(AugInstanceNorm1d), "1d+L"),
    "instance": Case(of(AugInstanceNorm2d)),
    "instance-learned": Case(of(AugInstanceNorm2d), options=LEARNED),
    "instance-3d": Case(of(AugInstanceNorm3d), "3d"),
    "layer": Case(of(AugLayerNorm, (3, 5))),
    "layer-learned": Case(of(AugLayerNorm, (3, 5)), options=LEARNED),
    "group": Case(of(AugGroupNorm, 2, CHANNELS)),
    "group-learned": Case(of(AugGroupNorm, 2, CHANNELS), options=LEARNED),
    "graph": Case(on_graphs(GraphNorm), "nodes"),
    "aug-graph": Case(on_graphs(AugGraphNorm), "nodes"),
    "aug-graph-learned": Case(on_graphs(AugGraphNorm), "nodes", LEARNED),
    "aug-graph-median": Case(on_graphs(AugGraphNorm), "nodes", (("phi", 1.0),)),
    "conv": Case(of(ConvNorm2d, CHANNELS, CHANNELS, 3, 1, 1)),
}
STATISTICS_CASES = [name for name, case in CASES.items() if case.has_statistics]
