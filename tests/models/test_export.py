"""What the exporter makes of these networks: in tracked files every norm behind a convolution is gone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from augserve.export import export_onnx
from augserve.models import build_model
from augserve.models.blocks import NormedConv
from augserve.models.densenet import DenseLayer, Transition
from augserve.models.mobilenet_v2 import InvertedResidual, relu6
from augserve.norms import BatchNorm2d
from tests.tolerances import PARITY

pytestmark = pytest.mark.slow


def mobile() -> nn.Module:
    block = InvertedResidual(8, 8, 1, 6, BatchNorm2d, 3, relu6)
    return nn.Sequential(NormedConv(3, 8, 3, BatchNorm2d, relu6, stride=4), block, nn.Flatten(), nn.Linear(128, 4))


def dense() -> nn.Module:
    layers = DenseLayer(8, BatchNorm2d), DenseLayer(40, BatchNorm2d), Transition(72, BatchNorm2d)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), *layers, nn.Flatten(), nn.Linear(144, 4))


NETWORKS = {  # what stands in the file besides Conv, and the last Gemm
    "resnet18": (lambda: build_model("resnet18"), {"Relu": 17, "Add": 8, "ReduceMean": 1}),
    "vgg11": (lambda: build_model("vgg11"), {"Relu": 8, "MaxPool": 5, "ReduceMean": 1}),
    "efficientnet-b0": (  # 33 SiLU behind a norm; a SiLU and a sigmoid in each of 16 blocks
        lambda: build_model("efficientnet-b0"),
        {"Sigmoid": 33 + 2 * 16, "Mul": 33 + 2 * 16, "Add": 9, "ReduceMean": 16 + 1},
    ),
    "mobilenet-v2's block": (mobile, {"Clip": 3, "Add": 1, "Reshape": 1}),
    # Norms in front of a ReLU: two layers' first ones and the transition's.
    "densenet121's layers": (dense, {"Relu": 5, "Concat": 2, "AveragePool": 1, "Reshape": 1, "Mul": 3, "Add": 3}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_tracked_files_hold_no_norm_behind_a_convolution(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, expected = NETWORKS[name]
    network, rows = build(), torch.randn(33, 3, 16, 16)
    with torch.no_grad():
        network(rows)  # running statistics
    report = export_onnx(network.eval(), tmp_path / "m.onnx", example=rows, mode="tracked")
    assert report.max_abs_difference <= PARITY
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert nodes == Counter(expected) + Counter(Conv=convolutions, Gemm=1)
