"""Every network of the zoo and every norm in an adaptive file.

The networks are smaller here, and the parity report is shorter. `scripts/check-exports` checks all of their pairs
as they are, in every mode.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from augserve.export import export_onnx, open_session
from augserve.export import parity as parity_module
from augserve.models import (
    build_model,
    densenet,
    efficientnet,
    list_models,
    mobilenet_v2,
    registry,
    resnet,
    resnet_cifar,
    vgg,
)
from augserve.norms import BatchNorm2d, list_norms, norm_layers, use_statistics
from augserve.norms.registry import normalize_model
from augserve.runtime import run_rows
from augserve.statistics import Statistics
from tests.tolerances import GROUP_ALONE, PARITY

pytestmark = pytest.mark.slow

GROUPS = (
    (7, Statistics("batch")),
    (2, Statistics("tracked")),
    (4, Statistics("blend", tracked_weight=0.4)),
    (6, Statistics("batch")),
)
GROUP = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [rows for rows, _ in GROUPS]).astype(np.int64))
WEIGHT = np.array([statistics.weight(rows) for rows, statistics in GROUPS], np.float32)[GROUP]
NORM_OF = {  # the norms in turn
    "resnet20": "batch",
    "resnet38": "median",
    "resnet50-cifar": "robust",
    "resnet18": "aug",
    "vgg11": "aug-learned",
    "vgg16": "robust",
    "vgg19": "batch",
    "mobilenet-v2": "aug",
    "densenet121": "batch",
    "efficientnet-b0": "aug",
}


@pytest.fixture(autouse=True)
def short_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_module, "SIZES", (7,))


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer blocks and channels: of every kind of block one, and one of another shape."""
    for name, depth in (("resnet20", 8), ("resnet38", 8), ("resnet50-cifar", 14)):
        monkeypatch.setitem(registry._MODELS, name, partial(resnet_cifar.ResNetCifar, depth))
    monkeypatch.setattr(resnet, "BLOCKS", 1)
    monkeypatch.setattr(resnet, "WIDTHS", (8, 16))
    monkeypatch.setattr(vgg, "WIDTHS", (8, 16, 24, 32, 32))
    monkeypatch.setattr(mobilenet_v2, "STAGES", ((1, 16, 1, 1), (6, 24, 2, 2)))
    monkeypatch.setattr(efficientnet, "STAGES", ((1, 16, 1, 1, 3), (6, 24, 2, 2, 5)))
    monkeypatch.setattr(densenet, "BLOCKS", (2, 1))


def check_file_of(network: nn.Module, path: Path) -> None:
    """Export, then compare mixed groups with torch, groups among others with groups alone, and look for NaN."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _ in range(5):
            network(torch.randn(16, 3, 8, 8) * 1.5 + 0.3)
    network.eval()
    x = torch.randn(len(GROUP), 3, 8, 8) * 1.5 + 0.3
    export_onnx(network, path, example=x)
    with torch.no_grad(), use_statistics(network, [s for _, s in GROUPS], torch.from_numpy(GROUP)):
        expected = network(x).numpy()
    bad = x.numpy().copy()
    bad[np.flatnonzero(GROUP == 0)[0], 1, 2, 2] = np.nan
    for native in ("auto", "off"):
        session = open_session(path, native=native)
        together = run_rows(session, x.numpy(), GROUP, WEIGHT)
        np.testing.assert_allclose(together, expected, rtol=0, atol=PARITY)
        beside = run_rows(session, bad, GROUP, WEIGHT)
        assert np.isnan(beside[GROUP == 0]).any()
        np.testing.assert_array_equal(beside[GROUP != 0], together[GROUP != 0])
        for g in range(4):
            mine = g == GROUP
            alone = run_rows(session, x.numpy()[mine], np.zeros(mine.sum(), np.int64), WEIGHT[mine])
            np.testing.assert_allclose(together[mine], alone, rtol=0, atol=GROUP_ALONE)
        if norm_layers(network):  # the groups' own statistics were used
            assert np.abs(together - run_rows(session, x.numpy())).max() > 0.01


@pytest.mark.parametrize("model", list_models())
def test_every_model_in_an_adaptive_file(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check_file_of(build_model(model, norm=NORM_OF[model]), tmp_path / "m.onnx")


@pytest.mark.parametrize("norm", list_norms())
def test_every_norm_in_an_adaptive_file(norm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check_file_of(build_model("resnet20", norm=norm), tmp_path / "m.onnx")


def test_conv_norm_in_an_adaptive_file(tmp_path: Path) -> None:
    torch.manual_seed(0)  # kernels of 1 x 1 and 3 x 3, depthwise ones too
    check_file_of(build_model("mobilenet-v2", norm="aug", conv_norm=True), tmp_path / "m.onnx")


@pytest.mark.parametrize("norm", ["oni", "spectral", "weight"])
def test_files_hold_the_weights_that_a_parametrization_computes(norm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), BatchNorm2d(6), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(144, 3)]
    network = nn.Sequential(*layers)
    if norm == "weight":
        for k in (0, 2):
            weight_norm(network[k])
    else:
        normalize_model(network, norm)
    x = torch.randn(9, 3, 8, 8)
    network(x)
    kinds, state = [type(layer) for layer in network], {k: v.clone() for k, v in network.state_dict().items()}
    export_onnx(network.eval(), tmp_path / "m.onnx", example=x, mode="tracked")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [node.op_type for node in graph.node] == ["Conv", "Conv", "Reshape", "Gemm"]  # the norm is folded
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    with torch.no_grad():
        assert any(np.array_equal(tensor, network[2].weight.numpy()) for tensor in stored)
    assert [type(layer) for layer in network] == kinds
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    network.train()(x).sum().backward()
    original = next(value for name, value in network.named_parameters() if name.startswith("0.parametrizations"))
    assert original.grad is not None
