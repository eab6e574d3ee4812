"""The tracked form of adaptive files: the same answers for tracked rows, and nothing of our domain left."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from augserve.export import export_onnx
from augserve.models import build_model
from augserve.norms import AugNorm2d, BatchNorm2d, ConvNorm2d, use_statistics
from augserve.runtime import open_session, open_tracked_session, run_rows
from augserve.runtime.tracked_form import DOMAIN, tracked_form
from augserve.service.model.opening import Opening, open_forms
from augserve.statistics import Statistics
from tests.export.conftest import KINDS, small_network
from tests.models.test_export import dense, mobile
from tests.service.tiny import write_model
from tests.tolerances import PARITY

pytestmark = pytest.mark.slow


def calibrated(network: nn.Module) -> nn.Module:
    """A network of the zoo with running statistics and affine parameters of its own."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            low = -0.5 if name.endswith("bias") else 0.5
            nn.init.uniform_(parameter, low, low + 1)
    with torch.no_grad():
        for _ in range(3):
            network(2 * torch.randn(16, 3, 16, 16) + 1)
    return network.eval()


def of_filters() -> nn.Module:
    """Layers of whitened filters, with norms behind them and without."""
    first, second = ConvNorm2d(3, 8, 3, padding=1), ConvNorm2d(8, 8, 3, stride=2, bias=False)
    return nn.Sequential(first, AugNorm2d(8), nn.ReLU(), second, BatchNorm2d(8), nn.Flatten(), nn.Linear(392, 4))


class Plain(nn.Module):
    """A norm at the input and norms behind convolutions that nothing else reads, with every ending."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.before = norm(3)
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), norm(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), norm(6)
        self.conv3, self.norm3 = nn.Conv2d(6, 6, 3, padding=1, bias=False), norm(6)
        self.conv4, self.norm4 = nn.Conv2d(6, 6, 1), norm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(self.before(x))))
        y = torch.relu(self.norm2(self.conv2(y)) + y)
        y = self.norm3(self.conv3(y)) + y
        y = self.norm4(self.conv4(y))
        logits: Tensor = self.head(torch.sigmoid(y).mean(dim=(2, 3)))
        return logits


PLAIN = ("batch", "aug-1.5", "aug-learned", "median", "midrange", "robust", "robust-range")
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{f"plain {kind}": (partial(lambda norm: calibrated(Plain(norm)), KINDS[kind]), 16) for kind in PLAIN},
    **{f"branched {kind}": (partial(small_network, KINDS[kind]), 8) for kind in ("aug-1.5", "robust")},
    "mobilenet-v2's blocks": (lambda: calibrated(mobile()), 16),
    "densenet121's layers": (lambda: calibrated(dense()), 16),
    "of filters": (lambda: calibrated(of_filters()), 16),
    "resnet20": (lambda: calibrated(build_model("resnet20", norm="aug")), 16),
}
CASES = list(NETWORKS)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tracked") / "small.onnx"
    export_onnx(calibrated(Plain(KINDS["aug-1.5"])), path, example=torch.randn(9, 3, 8, 8))
    return path


@pytest.mark.parametrize("name", CASES)
def test_it_answers_as_the_adaptive_file_with_tracked_statistics(name: str, tmp_path: Path) -> None:
    make, size = NETWORKS[name]
    network, path = make(), tmp_path / "m.onnx"
    export_onnx(network, path, example=torch.randn(9, 3, size, size))
    content = tracked_form(path.read_bytes())
    assert content is not None
    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert {opset.domain for opset in model.opset_import} == {""}
    assert (list(model.metadata_props), list(model.functions)) == ([], [])
    assert [value.name for value in model.graph.input] == ["input"]
    rows = np.random.default_rng(0).normal(1, 2, size=(7, 3, size, size)).astype(np.float32)
    adaptive, folded = open_session(path, threads=1), open_tracked_session(path, threads=1)
    assert folded is not None
    answer = run_rows(folded, rows)
    with torch.no_grad(), use_statistics(network, Statistics("tracked")):
        reference = network(torch.from_numpy(rows)).numpy()
    whole = run_rows(adaptive, rows, np.arange(7) % 3, np.ones(7, np.float32))
    for expected in (whole, reference):
        assert np.abs(answer - expected).max() <= PARITY * max(1.0, np.abs(expected).max())
    own = run_rows(adaptive, rows, np.arange(7) % 3, np.zeros(7, np.float32))
    assert np.abs(answer - own).max() > 100 * PARITY  # which statistics are taken matters here
    if name == "resnet20":
        assert_folded(content, tmp_path / "optimized.onnx")


def assert_folded(content: bytes, optimized: Path) -> None:
    """What ONNX Runtime makes of resnet20 has convolutions alone: no norm is left, and no shortcut of slices."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(optimized).graph.node]
    assert sum("Conv" in kind for kind in kinds) == 19 + 2  # the shortcuts'
    assert not {"Slice", "Pad", "BatchNormalization", "Mul", "Div", "Sub", "Sqrt"} & set(kinds)


def test_a_served_file_of_mode_tracked_runs_without_slices(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(calibrated(build_model("resnet20")), path, example=torch.randn(9, 3, 16, 16), mode="tracked")
    assert "Pad" in {node.op_type for node in onnx.load(path).graph.node}
    content = tracked_form(path.read_bytes())
    assert content is not None
    assert "Pad" not in {node.op_type for node in onnx.load_model_from_string(content).graph.node}
    assert tracked_form(path.read_bytes(), cpu=False) is None
    rows = np.random.default_rng(0).normal(size=(7, 3, 16, 16)).astype(np.float32)
    ids, weights = np.zeros(7, np.int64), np.ones(7, np.float32)
    (form, none, _), (written, nothing, _) = (open_forms(path, "m", Opening(), fold=fold) for fold in (True, False))
    assert (none, nothing) == (None, None)
    expected = written.run(rows, ids, weights)
    assert np.abs(form.run(rows, ids, weights) - expected).max() <= PARITY * max(1.0, np.abs(expected).max())
    assert len(form.session.get_modelmeta().custom_metadata_map) == 0  # not the file as it is
    assert len(written.session.get_modelmeta().custom_metadata_map) > 0


def test_one_file_has_one_form(small_file: Path) -> None:
    first, second = (tracked_form(small_file.read_bytes()) for _ in range(2))
    assert first is not None
    assert first == second


def test_none_where_groups_reach_the_answer_past_our_norms(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.onnx")
    assert tracked_form(path.read_bytes()) is None
    assert open_tracked_session(path) is None


def test_none_where_the_weight_reaches_the_answer_past_our_norms(small_file: Path) -> None:
    model = onnx.load(small_file)
    last = model.graph.node[-1]
    last.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Unsqueeze", ["tracked_weight", "one"], ["column"]))
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "column"], ["logits"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "one"))
    assert tracked_form(model.SerializeToString()) is None


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_none_where_a_parameter_is_no_constant(small_file: Path, place: int) -> None:
    model = onnx.load(small_file)
    (first, *_) = (node for node in model.graph.node if node.domain == DOMAIN)
    model.graph.node.insert(0, onnx.helper.make_node("Identity", [first.input[place]], ["computed"]))
    first.input[place] = "computed"
    assert tracked_form(model.SerializeToString()) is None


def test_none_where_a_parameter_is_not_float32(small_file: Path) -> None:
    model = onnx.load(small_file)
    (first, *_) = (node for node in model.graph.node if node.domain == DOMAIN)
    (tensor,) = (one for one in model.graph.initializer if one.name == first.input[1])
    halved = onnx.numpy_helper.to_array(tensor).astype(np.float16)
    tensor.CopyFrom(onnx.numpy_helper.from_array(halved, tensor.name))
    assert tracked_form(model.SerializeToString()) is None
