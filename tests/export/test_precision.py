"""Files in float16 and int8: how far from torch, what stays float32, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from augserve.errors import ConfigurationError, ExportError
from augserve.export import export_onnx, parity, verify_onnx
from augserve.export.precision import converted
from augserve.models import build_model
from augserve.norms import AugNorm2d, BatchNorm2d, RobustNorm2d, use_statistics
from augserve.operators import DOMAIN
from augserve.runtime import open_session, read_manifest, run_rows
from augserve.statistics import Statistics
from tests.export.conftest import small_network

pytestmark = pytest.mark.slow

FLOAT, FLOAT16, INT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8


def weights_of(path: Path, kind: str) -> set[int]:
    """The types of the weights of all nodes of a kind, behind casts and dequantizers."""
    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type in ("DequantizeLinear", "Cast")}
    names = [node.input[1] for node in graph.node if node.op_type == kind]
    return {types[sources.get(name, name)] for name in names}


def labels_of(network: torch.nn.Module, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return network(rows).argmax(1)


@pytest.mark.parametrize(("precision", "stored", "close"), [("float16", FLOAT16, 5e-3), ("int8", INT8, 0.1)])
def test_a_tracked_file_answers_almost_as_torch(
    precision: str, stored: int, close: float, rows: Tensor, tmp_path: Path
) -> None:
    network, path = small_network(AugNorm2d), tmp_path / "m.onnx"
    labels = labels_of(network, rows)
    report = export_onnx(
        network, path, example=rows, mode="tracked", precision=precision, validation=(rows, labels)
    )
    assert weights_of(path, "Conv") == {stored}
    with torch.no_grad():
        expected = network(rows).numpy()
    answer = run_rows(open_session(path), rows.numpy())
    assert answer.dtype == np.float32
    assert 0 < np.abs(answer - expected).max() <= close * np.abs(expected).max()
    manifest = read_manifest(open_session(path))
    assert manifest.precision == precision
    assert manifest.accuracy == report.accuracy
    assert report.accuracy is not None
    assert (report.accuracy.rows, report.accuracy.float32) == (40, 1.0)
    assert report.accuracy.file == float((answer.argmax(1) == labels.numpy()).mean())
    onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.parametrize("kind", [AugNorm2d, BatchNorm2d, lambda c: RobustNorm2d(c, track_running_stats=True)])
@pytest.mark.parametrize("mode", ["batch", "adaptive"])
def test_statistics_stay_float32_in_float16(kind: object, mode: str, rows: Tensor, tmp_path: Path) -> None:
    network, path = small_network(kind), tmp_path / "m.onnx"  # type: ignore[arg-type]
    export_onnx(network, path, example=rows, mode=mode, precision="float16")  # type: ignore[arg-type]
    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    parameters = {types[name] for node in graph.node if node.domain == DOMAIN for name in node.input[1:5]}
    assert parameters == {FLOAT}
    assert weights_of(path, "Conv") == {FLOAT16}
    with torch.no_grad(), use_statistics(network, Statistics("batch")):
        expected = network(rows).numpy()
    for native in ("auto", "off"):
        session = open_session(path, native=native)
        answer = run_rows(session, rows.numpy(), tracked_weight=np.zeros(len(rows), np.float32))
        assert np.abs(answer - expected).max() <= 5e-3 * np.abs(expected).max()


def test_the_report_is_run_again_on_a_file(rows: Tensor, tmp_path: Path) -> None:
    network, path = small_network(AugNorm2d), tmp_path / "m.onnx"
    report = export_onnx(network, path, example=rows, precision="float16")
    again = verify_onnx(network, path, example=rows)
    assert [check.name for check in again.checks] == [check.name for check in report.checks]
    with torch.no_grad():
        network.conv1.weight[0, 0, 1, 1] += 0.5  # type: ignore[union-attr, index]
    with pytest.raises(ExportError, match="parity failed"):
        verify_onnx(network, path, example=rows)


def test_what_cannot_be_is_refused(rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, path = small_network(AugNorm2d), tmp_path / "m.onnx"
    for mode in ("adaptive", "batch"):
        with pytest.raises(ExportError, match="int8 needs mode 'tracked'"):
            export_onnx(network, path, example=rows, mode=mode, precision="int8")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="unknown precision 'int4'; choose one of: float16, float32, int8"):
        export_onnx(network, path, example=rows, precision="int4")  # type: ignore[arg-type]
    labels = labels_of(network, rows)
    monkeypatch.setattr(parity, "ACCURACY_LOST", -1.0)
    with pytest.raises(ExportError, match=r"of the validation rows rightly, the network in float32 100\.00%"):
        export_onnx(network, path, example=rows, mode="tracked", precision="int8", validation=(rows, labels))
    with torch.no_grad():
        network.head.weight[0, 0] = 1e5  # type: ignore[union-attr, index]
    with pytest.raises(ExportError, match=r"head\.weight holds values beyond 65504"):
        export_onnx(network, path, example=rows, mode="tracked", precision="float16")
    assert not path.exists()


def test_float32_is_left_as_it_is(rows: Tensor, tmp_path: Path) -> None:
    export_onnx(small_network(AugNorm2d), tmp_path / "m.onnx", example=rows)
    model = onnx.load(tmp_path / "m.onnx")
    assert converted(model, "float32", rows.numpy()) is model


def test_int8_leaves_the_spectra_of_conv_norm_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model("resnet20", norm="batch", conv_norm=True)
    rows = torch.randn(16, 3, 16, 16)
    network(rows)
    path = tmp_path / "m.onnx"
    report = export_onnx(network.eval(), path, example=rows, mode="tracked", precision="int8")
    assert max(check.max_relative_difference for check in report.checks) < 0.25
    graph = onnx.load(path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {
        types[name] for node in graph.node if node.op_type == "MatMul" for name in node.input if name in types
    } <= {FLOAT}
    assert weights_of(path, "Conv") == {INT8}
