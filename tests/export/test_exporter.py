"""The exporter on networks from outside the zoo: every norm, every file mode, against torch and against itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from augserve.errors import ConfigurationError, ExportError, InputError
from augserve.export import export_onnx, open_session
from augserve.export import parity as parity_module
from augserve.manifest import METADATA_KEY
from augserve.models import build_model
from augserve.norms import AugGroupNorm, AugInstanceNorm2d, AugNorm2d, BatchNorm2d, use_statistics
from augserve.runtime import read_manifest, run_rows
from augserve.statistics import Statistics
from tests.export.conftest import KINDS, small_network
from tests.tolerances import GROUP_ALONE, PARITY

MODES = [Statistics("batch"), Statistics("tracked"), Statistics("blend", tracked_weight=0.4), Statistics("batch")]
GROUP = np.array([0, 3, 2, 1, 0, 2, 2, 3, 0, 1, 3, 3, 0, 2], np.int64)


def weights(group: np.ndarray) -> np.ndarray:
    sizes = np.bincount(group)
    return np.array([MODES[g].weight(sizes[g]) for g in group], np.float32)


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    network = small_network(KINDS[request.param])
    path = tmp_path_factory.mktemp("adaptive") / f"{request.param}.onnx"
    export_onnx(network, path, example=torch.randn(9, 3, 8, 8), mode="adaptive")
    return network, path


def test_mixed_groups_and_modes_answer_as_torch_does(exported: tuple[nn.Module, Path], rows: Tensor) -> None:
    network, path = exported
    x = rows[: len(GROUP)]
    answer = run_rows(open_session(path), x.numpy(), GROUP, weights(GROUP))
    with torch.no_grad(), use_statistics(network, MODES, group=torch.from_numpy(GROUP)):
        expected = network(x).numpy()
    np.testing.assert_allclose(answer, expected, atol=PARITY)
    assert np.abs(answer - run_rows(open_session(path), x.numpy())).max() > 0.01


def test_a_group_answers_as_if_alone(exported: tuple[nn.Module, Path], rows: Tensor) -> None:
    session = open_session(exported[1])
    x = rows[: len(GROUP)].numpy()
    together = run_rows(session, x, GROUP, weights(GROUP))
    for g in range(4):
        mine = g == GROUP
        alone = run_rows(session, x[mine], np.zeros(mine.sum(), np.int64), weights(GROUP)[mine])
        np.testing.assert_allclose(together[mine], alone, atol=GROUP_ALONE)


def test_strangers_content_changes_no_bit(exported: tuple[nn.Module, Path], rows: Tensor) -> None:
    session = open_session(exported[1])
    x = rows[: len(GROUP)].numpy()
    before = run_rows(session, x, GROUP, weights(GROUP))
    for bad in (np.float32(7.5), np.float32(np.nan), np.float32(np.inf), np.float32(-3e38)):
        changed = x.copy()
        with np.errstate(over="ignore"):
            changed[GROUP == 3] *= bad
        after = run_rows(session, changed, GROUP, weights(GROUP))
        mine = GROUP != 3
        assert np.array_equal(before[mine], after[mine]), bad


def test_tracked_rows_stand_alone_even_beside_nan(exported: tuple[nn.Module, Path], rows: Tensor) -> None:
    session = open_session(exported[1])
    x = rows[:4].numpy().copy()
    before = run_rows(session, x)
    x[0] = np.nan
    assert np.array_equal(run_rows(session, x)[1:], before[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_tracked_file_is_folded_and_standard(kind: str, rows: Tensor, tmp_path: Path) -> None:
    network = small_network(KINDS[kind])
    report = export_onnx(network, tmp_path / "m.onnx", example=rows, mode="tracked")
    assert report.max_abs_difference <= PARITY
    proto = onnx.load(tmp_path / "m.onnx")
    assert {entry.domain for entry in proto.opset_import} == {""}
    assert not proto.functions
    kinds = [node.op_type for node in proto.graph.node]
    # norm2 folds into conv2; conv1's result has two uses and the input has no producer: both maps are written out.
    assert kinds.count("Mul") == 2
    assert "BatchNormalization" not in kinds
    with torch.no_grad():
        expected = network(rows).numpy()
    plain = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    answer = plain.run(None, {"input": rows.numpy()})[0]
    assert np.abs(answer - expected).max() <= 1e-5 * np.abs(expected).max()


def test_batch_file_normalizes_the_whole_run(rows: Tensor, tmp_path: Path) -> None:
    network = small_network(AugNorm2d)
    export_onnx(network, tmp_path / "m.onnx", example=rows, mode="batch")
    session = open_session(tmp_path / "m.onnx")
    assert [node.name for node in session.get_inputs()] == ["input"]
    with torch.no_grad(), use_statistics(network, Statistics("batch")):
        np.testing.assert_allclose(run_rows(session, rows.numpy()), network(rows).numpy(), atol=PARITY)


def test_file_is_clean_and_says_what_it_is(rows: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    network = small_network(AugNorm2d)
    classes = ["a", "b", "c", "d"]
    report = export_onnx(network, path, example=rows, manifest={"classes": classes, "architecture": "mine"})
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert {function.name for function in proto.functions} == {"AugNorm", "AugNormRelu", "AugNormAddRelu"}
    manifest = read_manifest(open_session(path))
    assert (manifest.mode, manifest.architecture, manifest.classes) == ("adaptive", "mine", classes)
    assert manifest.shape == [3, 8, 8]
    assert [layer.name for layer in manifest.norms] == ["before", "norm1", "norm2"]
    assert manifest.norms[0].positions == 64
    assert manifest.norms[0].options["phi"] == 1.5
    assert tuple(manifest.parity) == report.checks
    names = {check.name for check in report.checks}
    assert {"tracked, 1 rows", "batch, 32 rows", "blend, 7 rows", "mixed groups and modes"} <= names
    text = json.dumps(proto.metadata_props[0].value) + str(proto.graph.node[0])
    assert str(Path(__file__).parent) not in text


def test_network_is_left_as_it_was(rows: Tensor, tmp_path: Path) -> None:
    network = small_network(AugNorm2d)
    network.train()
    network.norm1.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_onnx(network, tmp_path / "m.onnx", example=rows)
    assert network.training
    assert not network.norm1.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_layer_without_affine_parameters(rows: Tensor, tmp_path: Path) -> None:
    for mode in ("tracked", "adaptive"):
        network = small_network(lambda c: BatchNorm2d(c, affine=False))
        assert export_onnx(network, tmp_path / "m.onnx", example=rows, mode=mode).max_abs_difference <= PARITY


def test_network_without_norm_layers(rows: Tensor, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    for mode in ("adaptive", "batch", "tracked"):
        export_onnx(network, tmp_path / "m.onnx", example=rows, mode=mode)
        assert run_rows(open_session(tmp_path / "m.onnx"), rows.numpy()).shape == (40, 2)


@pytest.mark.parametrize("norm", ["aug", "robust"])
def test_resnet20_in_the_default_mode_of_its_norm(norm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model("resnet20", norm=norm)
    for _ in range(3):
        network(torch.randn(8, 3, 32, 32))
    example = torch.randn(33, 3, 32, 32)
    report = export_onnx(network, tmp_path / "m.onnx", example=example)
    assert report.max_abs_difference <= PARITY * 2
    manifest = read_manifest(open_session(tmp_path / "m.onnx"))
    assert manifest.default_mode == ("batch" if norm == "robust" else "tracked")


def refused(network: nn.Module, path: Path, rows: Tensor, mode: str = "adaptive") -> str:
    path.write_bytes(b"old")
    with pytest.raises(ExportError) as caught:
        export_onnx(network, path, example=rows, mode=mode)
    assert path.read_bytes() == b"old"
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    return str(caught.value)


def test_rows_of_one_channel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model("resnet20", in_channels=1, norm="aug", conv_norm=True)
    x = torch.rand(5, 1, 8, 8)
    network(x)
    path = tmp_path / "model.onnx"
    export_onnx(network, path, example=x)
    with torch.no_grad():
        expected = network.eval()(x).numpy()
    np.testing.assert_allclose(run_rows(open_session(path), x.numpy()), expected, atol=PARITY)


def test_an_exponent_too_large_for_powers_exports_as_inf(rows: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(small_network(lambda c: AugNorm2d(c, 1e12)), path, example=rows)
    assert "MidrangeNorm" in {node.op_type for node in onnx.load(path).graph.node}


def test_layers_without_a_form_in_the_file_are_refused_by_name(rows: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for kind in (AugInstanceNorm2d, lambda c: AugGroupNorm(1, c)):
        with pytest.raises(ExportError, match="has no form in ONNX files"):
            export_onnx(small_network(kind), path, example=rows)
    assert not path.exists()


def test_torch_batch_norm_is_refused_by_name(rows: Tensor, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    path = tmp_path / "m.onnx"
    assert "layer '1' (torch.nn.BatchNorm2d) has no explicit statistics" in refused(network.eval(), path, rows)
    network.train()
    assert "'1' (torch.nn.BatchNorm2d) is left in train mode" in refused(network, path, rows, "tracked")
    path.unlink()
    network.eval()
    assert export_onnx(network, path, example=rows, mode="tracked").max_abs_difference <= PARITY


def test_layer_without_running_statistics_is_refused_by_name(rows: Tensor, tmp_path: Path) -> None:
    network = small_network(AugNorm2d)
    network.norm2 = AugNorm2d(6, track_running_stats=False)
    for mode in ("tracked", "adaptive"):
        assert "layer 'norm2' (AugNorm2d) keeps no running statistics" in refused(
            network, tmp_path / "m.onnx", rows, mode
        )
    export_onnx(network, tmp_path / "m.onnx", example=rows, mode="batch")


def test_control_flow_on_data_is_refused(rows: Tensor, tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2] if x.sum() > 0 else x.flatten(1)[:, 2:4]

    assert "control flow" in refused(Branching(), tmp_path / "m.onnx", rows)


def test_failed_parity_writes_nothing(rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_module, "run_rows", lambda *a: run_rows(*a) + np.float32(0.01))
    assert "parity failed (tracked, 1 rows, standard operators)" in refused(
        small_network(AugNorm2d), tmp_path / "m.onnx", rows
    )
    monkeypatch.setattr(parity_module, "run_rows", lambda *a: run_rows(*a) * np.float32(math.nan))
    assert "parity failed" in refused(small_network(AugNorm2d), tmp_path / "m.onnx", rows)


def test_wrong_arguments_say_what_was_expected(rows: Tensor, tmp_path: Path) -> None:
    network = small_network(AugNorm2d)
    with pytest.raises(ConfigurationError, match="adaptive, batch, tracked"):
        export_onnx(network, tmp_path / "m.onnx", example=rows, mode="eval")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not take the example rows"):
        export_onnx(network, tmp_path / "m.onnx", example=torch.randn(2, 5, 8, 8))
    with pytest.raises(InputError, match="float32 tensor"):
        export_onnx(network, tmp_path / "m.onnx", example=rows.double())
    with pytest.raises(ExportError, match="no such folder"):
        export_onnx(network, tmp_path / "nowhere" / "m.onnx", example=rows)
    with pytest.raises(ExportError, match="4 class names"):
        export_onnx(network, tmp_path / "m.onnx", example=rows, manifest={"classes": ["a"]})
    with pytest.raises(ExportError, match="logits"):
        export_onnx(nn.Conv2d(3, 4, 3), tmp_path / "m.onnx", example=rows)
    assert not list(tmp_path.iterdir())


def test_metadata_has_one_entry(rows: Tensor, tmp_path: Path) -> None:
    export_onnx(small_network(BatchNorm2d), tmp_path / "m.onnx", example=rows)
    proto = onnx.load(tmp_path / "m.onnx")
    assert [entry.key for entry in proto.metadata_props] == [METADATA_KEY]
