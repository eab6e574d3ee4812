"""ConvNorm2d in exported graphs: every kind of layer against dense matrices, and what the file holds."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from augserve.errors import ExportError, InputError
from augserve.export.operators.filters import basis, fold_into_filter, lower_filters
from augserve.export.operators.fold import lower_tracked
from augserve.export.tracing.conv_norm import spectra_of
from augserve.export.tracing.trace import trace
from augserve.norms import BatchNorm2d, ConvNorm2d
from augserve.norms.tracing import tracer
from augserve.operators import DOMAIN
from tests.norms.conv_oracle import CONVOLUTIONS, NORMS, Array, build, dense, random
from tests.tolerances import KERNEL, PARITY

pytestmark = pytest.mark.slow


class Side(nn.Module):
    """Layers side by side: each one's output as one row."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x).flatten(1) for layer in self.layers], dim=1)


class Residual(nn.Module):
    """Strides, a shortcut of 1 x 1, norms after ConvNorm2d, and one layer that sees two sizes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv1 = ConvNorm2d(3, 8, 3, padding=1, bias=False, **options)
        self.norm1 = BatchNorm2d(8)
        self.conv2 = ConvNorm2d(8, 8, 3, stride=2, padding=1, bias=False, **options)
        self.norm2 = BatchNorm2d(8)
        self.shortcut = ConvNorm2d(8, 8, 1, stride=2, bias=False, **options)
        self.norm3 = BatchNorm2d(8)
        self.twice = ConvNorm2d(8, 8, 3, padding=1, **options)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(torch.relu(self.norm1(self.conv1(x)))))
        x = torch.relu(self.norm2(self.conv2(x)) + self.norm3(self.shortcut(x)))
        logits: Tensor = self.head(self.twice(x).mean(dim=(2, 3)))
        return logits


def drawn(network: nn.Module) -> nn.Module:
    """Return the network in eval mode with all parameters and running statistics drawn."""
    for k, (name, value) in enumerate(network.state_dict().items()):
        if value.is_floating_point():
            values = random(*value.shape, seed=k, dtype=torch.float32)
            value.copy_(values.abs() + 0.5 if "var" in name else values)
    return network.eval()


def exported(network: nn.Module, example: Tensor) -> onnx.ModelProto:
    """Return the file of mode tracked, without the tracer's notes."""
    traced = trace(network, example, "tracked")
    lower_tracked(traced)
    lower_filters(traced)
    proto = ir.to_proto(traced)
    proto.ir_version = 10
    graph = proto.graph
    for noted in (proto, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del noted.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(proto: onnx.ModelProto, x: Tensor) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


# Sizes of inputs, and where each convolution begins in the table of norms, so that all take turns.
INPUTS = {(6, 5): 0, (7, 8): 3}


@pytest.fixture(scope="module", params=INPUTS, ids=str)
def everything(request: pytest.FixtureRequest) -> tuple[Tensor, dict[str, Array], onnx.ModelProto]:
    """Rows, what NumPy says of every layer, and the layers side by side in one file."""
    x, norms = random(2, 4, *request.param), list(NORMS)
    layers = {}
    for k, (name, (kernel_size, options)) in enumerate(CONVOLUTIONS.items()):
        norm = norms[(k + INPUTS[request.param]) % len(norms)]
        layers[f"{name}, {norm}"] = build(kernel_size, **options, **NORMS[norm])
    expected = {name: dense(layer, x).reshape(len(x), -1) for name, layer in layers.items()}
    network = Side(*layers.values()).float().eval()
    return x.float(), expected, exported(network, x.float())


@pytest.mark.parametrize("runtime", ["ONNX Runtime", "reference"])
def test_every_layer_answers_as_dense_matrices_do(
    everything: tuple[Tensor, dict[str, Array], onnx.ModelProto], runtime: str
) -> None:
    x, expected, proto = everything
    if runtime == "reference":
        answer = onnx.reference.ReferenceEvaluator(proto).run(None, {"input": x.numpy()})[0]
    else:
        answer = run(proto, x)
    ends = np.cumsum([values.shape[1] for values in expected.values()])
    assert answer.shape == (2, ends[-1])
    wrong = {}
    for (name, values), part in zip(expected.items(), np.split(answer, ends[:-1], axis=1), strict=True):
        error = np.abs(part - values).max() / np.abs(values).max()
        if not error <= KERNEL:
            wrong[name] = error
    assert not wrong


def test_operators_are_standard_ones_of_opset_18(
    everything: tuple[Tensor, dict[str, Array], onnx.ModelProto],
) -> None:
    proto = everything[2]
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
    assert {node.op_type for node in proto.graph.node} <= {
        *("Add", "Concat", "Conv", "Gather", "MatMul", "Mul", "Pad", "Reshape", "Slice", "Transpose", "Unsqueeze")
    }


def test_any_number_of_rows_each_by_itself() -> None:
    network, rows = drawn(Side(ConvNorm2d(3, 4, 3, padding=1), ConvNorm2d(3, 4, 2, stride=2))), random(5, 3, 6, 6)
    proto, rows = exported(network, rows.float()), rows.float()
    together = run(proto, rows)
    for k in range(5):
        assert np.array_equal(run(proto, rows[k : k + 1])[0], together[k])
    rows[3] = torch.nan
    assert np.array_equal(np.delete(run(proto, rows), 3, axis=0), np.delete(together, 3, axis=0))


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"affine_position": "before_crop"}], ids=str)
def test_network_answers_as_torch_does(options: dict[str, Any]) -> None:
    network, rows = drawn(Residual(**options)), random(7, 3, 12, 10, dtype=torch.float32)
    with torch.no_grad():
        expected = network(rows).numpy()
    answer = run(exported(network, rows[:2]), rows)
    assert np.abs(answer - expected).max() <= PARITY * np.abs(expected).max()


def test_layer_that_sees_two_sizes_has_two_spectra_and_each_other_one() -> None:
    proto = exported(drawn(Residual()), random(2, 3, 12, 10, dtype=torch.float32))
    even = sorted(tensor.name for tensor in proto.graph.initializer if ".even" in tensor.name)
    assert even == ["conv1.even", "conv2.even", "twice.even", "twice.even'"]


@pytest.mark.parametrize(
    "layer", [ConvNorm2d(4, 6, 3, affine=False), ConvNorm2d(4, 6, 3, affine=False, bias=False)]
)
def test_norm_folds_into_a_filter(layer: ConvNorm2d) -> None:
    network, x = drawn(nn.Sequential(layer, BatchNorm2d(6), nn.Flatten())), random(3, 4, 6, 5, dtype=torch.float32)
    traced = trace(network, x, "tracked")
    norm = network[1]
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double()
    shift = norm.bias.detach().double() - norm.running_mean.double() * scale
    node = next(node for node in traced.graph if node.domain == DOMAIN)
    assert fold_into_filter(traced.graph, node, scale.numpy(), shift.numpy())
    lower_filters(traced)
    proto = ir.to_proto(traced)
    proto.ir_version = 10
    data = {"input"}  # what is not constant
    on_data = []
    for node in proto.graph.node:
        if data.intersection(node.input):
            data.update(node.output)
            on_data.append(node.op_type)
    assert on_data == [
        *("Conv", "MatMul", "MatMul", "Reshape", "Mul", "Gather", "Mul", "Add", "Reshape", "MatMul", "MatMul"),
        *("Add", "Reshape"),
    ]
    with torch.no_grad():
        expected = network(x).numpy()
    np.testing.assert_allclose(run(proto, x), expected, rtol=0, atol=KERNEL * np.abs(expected).max())


def test_filter_with_another_use_keeps_its_values() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = ConvNorm2d(4, 6, 3, affine=False), BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return (y + self.norm(y)).flatten(1)

    network, x = drawn(Branches()), random(3, 4, 6, 5, dtype=torch.float32)
    traced = trace(network, x, "tracked")
    node = next(node for node in traced.graph if node.domain == DOMAIN)
    assert not fold_into_filter(traced.graph, node, np.ones(6), np.zeros(6))


def test_norm_folds_into_r_and_into_a_kernel_of_one() -> None:
    network = drawn(
        nn.Sequential(ConvNorm2d(4, 6, 3), BatchNorm2d(6), ConvNorm2d(6, 4, 1), BatchNorm2d(4), nn.Flatten())
    )
    x = random(3, 4, 6, 5, dtype=torch.float32)
    proto, plain = exported(network, x), exported(nn.Sequential(network[0], network[2], network[4]), x)
    assert [node.op_type for node in proto.graph.node] == [node.op_type for node in plain.graph.node]
    with torch.no_grad():
        expected = network(x).numpy()
    np.testing.assert_allclose(run(proto, x), expected, rtol=0, atol=KERNEL * np.abs(expected).max())


def test_file_is_little_more_than_weights_and_spectra() -> None:
    wide = [ConvNorm2d(64, 64, 3, padding=1, bias=False) for _ in range(3)]
    network = drawn(nn.Sequential(ConvNorm2d(3, 64, 3, padding=1), *wide, nn.Flatten()))
    proto = exported(network, random(1, 3, 16, 12, dtype=torch.float32))
    spectra = sum(layer.multiplier(16, 12).numel() for layer in network[:4])
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert proto.ByteSize() <= 1.03 * 4 * (weights + spectra)
    bases = [t for t in proto.graph.initializer if t.name.startswith("fourier")]
    assert sorted(list(t.dims) for t in bases) == [[14, 14], [18, 18]]  # of all four layers


def test_computed_weight_is_a_constant() -> None:
    layer = ConvNorm2d(4, 6, 3, padding=1)
    weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)
    network, x = nn.Sequential(layer, nn.Flatten()).eval(), random(2, 4, 6, 5, dtype=torch.float32)
    proto = exported(network, x)
    with torch.no_grad():
        expected = network(x).numpy()
    np.testing.assert_allclose(run(proto, x), expected, rtol=0, atol=KERNEL * np.abs(expected).max())
    assert not {"ReduceL2", "Sqrt", "Div"} & {node.op_type for node in proto.graph.node}


def test_network_is_as_it_was_and_nothing_stays_bound() -> None:
    network = Residual().train()
    network.norm1.eval()
    x, state = random(2, 3, 12, 10, dtype=torch.float32), copy.deepcopy(network.state_dict())
    modes = [part.training for part in network.modules()]
    spectra = spectra_of(network, x)
    assert torch.equal(spectra[id(network.conv1), (12, 10)].multiplier, network.conv1.multiplier(12, 10))
    assert (id(network.conv1), (12, 9)) not in spectra
    trace(network.eval(), x, "tracked")
    assert tracer() is None
    network.train()
    network.norm1.eval()
    assert [part.training for part in network.modules()] == modes
    assert not any(part._forward_pre_hooks for part in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    with pytest.raises(InputError):
        spectra_of(network, x[:, :2])
    assert not any(part._forward_pre_hooks for part in network.modules())


def test_spectrum_that_is_no_constant_is_refused() -> None:
    network, x = nn.Sequential(ConvNorm2d(4, 6, 3), nn.Flatten()).eval(), random(2, 4, 6, 5, dtype=torch.float32)
    traced = trace(network, x, "tracked")
    node = next(node for node in traced.graph if node.domain)
    node.replace_input_with(1, node.inputs[0])
    with pytest.raises(ExportError, match="constants of the graph"):
        lower_filters(traced)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9, 34])
def test_basis_is_orthonormal(length: int) -> None:
    waves = basis(length)
    np.testing.assert_allclose(waves.T @ waves, np.eye(length), atol=1e-12)
    assert np.abs(waves).max() <= math.sqrt(2 / length) + 1e-12
