"""Tensors that are neither parameters nor buffers: in files as what they hold, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from augserve.errors import ExportError
from augserve.export import export_onnx, open_session
from augserve.export import parity as parity_module
from augserve.norms import AugNorm2d
from augserve.runtime import run_rows
from tests.tolerances import PARITY

pytestmark = pytest.mark.slow

ELSEWHERE = torch.linspace(-1, 1, 108).reshape(4, 3, 3, 3)


class Kernel(nn.Module):
    """A convolution with tensors that are no parameters."""

    def __init__(self, apply: Callable[[Kernel, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.apply_to = apply
        self.ones, self.bias = torch.ones(4, 3, 3, 3), torch.ones(4)
        self.kept = {"kernels": [torch.randn(4, 3, 3, 3)]}
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_to(self, x)


class Network(nn.Module):
    def __init__(self, apply: Callable[[Kernel, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Kernel(apply), AugNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return logits


@pytest.fixture(autouse=True)
def short_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_module, "SIZES", (2,))


CONSTANTS: dict[str, Callable[[Kernel, Tensor], Tensor]] = {
    "kernel": lambda layer, x: functional.conv2d(x, layer.ones),
    "bias": lambda layer, x: functional.conv2d(x, layer.weight, layer.bias),
    "in a list": lambda layer, x: functional.conv2d(x, layer.kept["kernels"][0], layer.bias),
    "of the module": lambda layer, x: functional.conv2d(x, ELSEWHERE),
    "expanded": lambda layer, x: functional.conv2d(x, layer.ones[:1, :1].expand(3, 1, 3, 3), groups=3).repeat(
        1, 2, 1, 1
    )[:, :4],
    "data of a tensor": lambda layer, x: functional.conv2d(x, 2 * layer.ones.data),
    "data of a parameter": lambda layer, x: functional.conv2d(x, layer.weight.data),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, "adaptive") for name in CONSTANTS), ("kernel", "tracked"), ("data of a tensor", "tracked")],
)
def test_constants_are_in_the_file(name: str, mode: str, tmp_path: Path) -> None:
    network, x = Network(CONSTANTS[name]).eval(), torch.randn(5, 3, 8, 8)
    export_onnx(network, tmp_path / "m.onnx", example=x, mode=mode)
    with torch.no_grad():
        expected = network(x)
    answer = torch.from_numpy(run_rows(open_session(tmp_path / "m.onnx"), x.numpy()))
    torch.testing.assert_close(answer, expected, atol=PARITY, rtol=0)
    assert float(expected.std(0).max()) > 0.01


@pytest.mark.parametrize("mode", ["adaptive", "batch"])
def test_a_tensor_that_a_norm_shares_with_a_layer_is_halved_for_the_layer_alone(mode: str, tmp_path: Path) -> None:
    network = Network(CONSTANTS["bias"]).eval()  # the norm's weight is ones, too, and the tracer keeps one of both
    export_onnx(network, tmp_path / "m.onnx", example=torch.randn(5, 3, 8, 8), mode=mode, precision="float16")
    graph = onnx.load(tmp_path / "m.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    (conv,) = (node for node in graph.node if node.op_type == "Conv")
    (norm,) = (node for node in graph.node if node.domain == "augserve")
    assert types[conv.input[2]] == onnx.TensorProto.FLOAT16
    assert types[norm.input[1]] == onnx.TensorProto.FLOAT


def changed(layer: Kernel, x: Tensor) -> Tensor:
    layer.ones.mul_(1.5)
    return functional.conv2d(x, layer.ones)


def through_numpy(layer: Kernel, x: Tensor) -> Tensor:
    return functional.conv2d(x, torch.from_numpy(layer.ones.numpy()))


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (changed, ["changes its tensor 'ones' in forward", "k * 2 instead of k.mul_(2)"]),
        (
            lambda layer, x: functional.conv2d(x, layer.kept["kernels"][0].mul_(1.5)),
            ["changes a tensor that it keeps"],
        ),
        (through_numpy, ["reads the numbers of a tensor in forward", "write it in torch"]),
    ],
    ids=["attribute", "in a list", "numpy"],
)
def test_constants_that_are_none_are_refused(
    apply: Callable[[Kernel, Tensor], Tensor], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        export_onnx(Network(apply), tmp_path / "m.onnx", example=torch.randn(5, 3, 8, 8))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "torch.where" not in message
    assert not list(tmp_path.iterdir())
