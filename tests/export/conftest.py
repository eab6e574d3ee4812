"""A small trained network with any norm, as an engineer brings it: no model of the zoo."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from augserve.norms import AugNorm2d, BatchNorm2d, RobustNorm2d, StatisticsNorm, norm_layers

KINDS: dict[str, Callable[[int], StatisticsNorm]] = {
    "batch": BatchNorm2d,
    "aug-1.1": lambda c: AugNorm2d(c, 1.1),
    "aug-1.5": lambda c: AugNorm2d(c, 1.5),
    "aug-2": lambda c: AugNorm2d(c, 2.0),
    "aug-3": lambda c: AugNorm2d(c, 3.0),
    "aug-learned": lambda c: AugNorm2d(c, learn_phi=True),
    "median": lambda c: AugNorm2d(c, 1.0),
    "midrange": lambda c: AugNorm2d(c, math.inf),
    "robust": lambda c: RobustNorm2d(c, track_running_stats=True),
    "robust-range": lambda c: RobustNorm2d(c, track_running_stats=True, track="range"),
}


def small_network(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Norms after a convolution, after a linear-free branch point, and at the input (nothing to fold into)."""
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = norm(3)
            self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
            self.norm1 = norm(6)
            self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
            self.norm2 = norm(6)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            first = self.conv1(self.before(x))
            y = torch.relu(self.norm1(first))
            y = torch.relu(self.norm2(self.conv2(y)) + first)
            logits: Tensor = self.head(y.mean(dim=(2, 3)))
            return logits

    network = Residual()
    for layer in norm_layers(network).values():
        if layer.weight is not None and layer.bias is not None:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
        if isinstance(layer, AugNorm2d) and layer.learn_phi:
            nn.init.normal_(layer.phi_logit)  # exponents on both sides of 2
    for _ in range(5):
        network(torch.randn(16, 3, 8, 8) * 2 + 1)
    return network.eval()


@pytest.fixture
def rows() -> Tensor:
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 + 1
    x[5] = x[5].clamp_min(0)  # a row with ties
    x[9, :, 0, 0] = 50.0  # and one with outliers
    return x
