"""Layers of every rank, and every kind of layer that a tracked norm folds into (or does not)."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from augserve.export import export_onnx
from augserve.norms import AugNorm1d, AugNorm2d, AugNorm3d, BatchNorm1d, RobustNorm2d, norm_layers
from tests.tolerances import PARITY

# name: layers up to the head, shape of a row, whether the norm folds into the layer before it
CASES = {
    "linear": ([nn.Flatten(), nn.Linear(12, 8), AugNorm1d(8)], (3, 2, 2), True),
    "linear without bias": ([nn.Flatten(), nn.Linear(12, 8, bias=False), BatchNorm1d(8)], (3, 2, 2), True),
    "conv1d": ([nn.Conv1d(4, 6, 3), AugNorm1d(6, 1.0)], (4, 7), True),
    "conv3d": ([nn.Conv3d(2, 4, 2), AugNorm3d(4, 3.0)], (2, 4, 4, 4), True),
    "grouped": ([nn.Conv2d(4, 8, 3, groups=4), RobustNorm2d(8, track_running_stats=True)], (4, 5, 5), True),
    "transposed": ([nn.ConvTranspose2d(3, 5, 3, stride=2), AugNorm2d(5)], (3, 4, 4), True),
    "transposed, grouped": ([nn.ConvTranspose2d(4, 6, 3, groups=2), AugNorm2d(6)], (4, 4, 4), False),
    "after relu": ([nn.Conv2d(3, 5, 3), nn.ReLU(), AugNorm2d(5)], (3, 6, 6), False),
}


@pytest.mark.parametrize("name", CASES)
def test_every_layer_exports_and_folds_where_it_can(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers, shape, folds = CASES[name]
    network = nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    for _ in range(3):
        network(torch.randn(9, *shape) * 2 + 1)
    for layer in norm_layers(network).values():
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias)
    rows = torch.randn(9, *shape)
    for mode in ("adaptive", "tracked"):
        assert export_onnx(network, tmp_path / "m.onnx", example=rows, mode=mode).max_abs_difference <= PARITY
    operators = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert operators.count("Mul") == (0 if folds else 1), operators
