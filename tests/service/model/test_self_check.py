"""What a file must show before it serves: graphs that answer wrongly, or let groups see each other, are refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from augserve.errors import ModelFileError
from augserve.runtime import open_session, read_manifest
from augserve.service import Predictor, PredictSettings
from augserve.service.model.graph import Form
from augserve.service.model.self_check import agree, check_answers, check_isolation
from tests.service.held import FakeForm
from tests.service.tiny import save_sealed, some_rows, write_model

LEAKS = {
    "the statistics of the whole run": ("other rows", {"own": "own = ReduceMean<keepdims=1>(m, batch_axis)"}),
    "the fresh part of the center": (
        "other rows",
        {"center": "mixed = ReduceMean<keepdims=1>(fresh, batch_axis) center = Add(kept, mixed)"},
    ),
    "the logits": (
        "other rows",
        {"logits": "sum = Add(left, right) top = ReduceMax<keepdims=1>(sum, batch_axis) logits = Sub(sum, top)"},
    ),
    "nothing but NaN": (
        "NaN",
        {
            "own": "clean = Div(group_sum, group_count) all = ReduceSum<keepdims=1>(m, batch_axis) "
            "nought = Mul(all, weightless) own = Add(clean, nought)"
        },
    ),
}


def edited(path: Path, changes: dict[str, str]) -> Path:
    """Write the network with the nodes that make these values replaced, as a broken exporter would."""
    model = onnx.load(write_model(path))
    nodes = []
    for node in model.graph.node:
        text = changes.get(node.output[0])
        if text is None:
            nodes.append(node)
        else:
            parsed = onnx.parser.parse_graph(f"agraph (float[N,3] m) => (float[N,3] {node.output[0]}) {{ {text} }}")
            nodes += parsed.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    save_sealed(model, path)
    return path


@pytest.mark.parametrize("leak", LEAKS)
def test_a_file_whose_groups_see_each_other_is_refused(tmp_path: Path, leak: str) -> None:
    what, changes = LEAKS[leak]
    path = edited(tmp_path / "leaks.onnx", changes)
    with pytest.raises(ModelFileError) as refused:
        Predictor.open(path, threads=1)
    message = str(refused.value)
    assert message.startswith(f"{path}: fails its self-check: {what} in one statistics group changed the answer")
    assert "export the file again" in message


def test_a_leak_shows_only_in_the_check_of_groups(tmp_path: Path) -> None:
    """A file with a leak answers, finite and with the right shape."""
    session = open_session(edited(tmp_path / "leaks.onnx", LEAKS["the statistics of the whole run"][1]), threads=1)
    check_answers(Form(session, "leaks"), read_manifest(session))


def test_nan_in_the_row_of_a_group_s_number_is_looked_at(tmp_path: Path) -> None:
    """Sums that begin at x - x instead of 0 are NaN in group k where row k of the run, whoever sent it, is NaN."""
    path = edited(tmp_path / "leaks.onnx", {"zeros": "zeros = Sub(m, m)"})
    with pytest.raises(ModelFileError, match="NaN in one statistics group changed the answer"):
        Predictor.open(path, threads=1)


def test_a_good_file_passes(model: Path) -> None:
    session = open_session(model, threads=1)
    form, manifest = Form(session, "tiny"), read_manifest(session)
    check_answers(form, manifest)
    check_isolation(form, manifest)


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("sum = Add(left, right) logits = Div(sum, weightless)", "NaN or inf"),
        ("sum = Add(left, right) logits = Concat<axis=0>(sum, sum)", r"logits of shape \(2, 4\)"),
    ],
)
def test_a_file_that_answers_something_else_is_refused(tmp_path: Path, text: str, came: str) -> None:
    path = edited(tmp_path / "wrong.onnx", {"logits": text})
    with pytest.raises(ModelFileError, match=f"self-check on zeros: expected 4 finite logits a row; got {came}"):
        Predictor.open(path, threads=1)


def test_a_model_that_fails_is_refused_in_one_line(model: Path) -> None:
    def fails(rows: list[float]) -> None:
        raise RuntimeError("out of memory\nand much more" + "x" * 1000)

    manifest = read_manifest(open_session(model, threads=1))
    for check in (check_answers, check_isolation):
        with pytest.raises(ModelFileError, match=r"fails its self-check on .* \(out of memory\)$"):
            check(FakeForm(on_run=fails), manifest)


# --- the folded form --------------------------------------------------------------------------------------


def plain_session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


@pytest.fixture
def folded(tmp_path: Path) -> Path:
    """What the tracked form of the network computed by hand would be."""
    return write_model(tmp_path / "folded.onnx", "tracked")


def shifted(path: Path, factor: float) -> Path:
    model = onnx.load(path)
    (tensor,) = (one for one in model.graph.initializer if one.name == "w")
    values = (onnx.numpy_helper.to_array(tensor) * factor).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("factor", "same"), [(1.0, True), (1.00001, True), (1.1, False), (float("nan"), False)])
def test_a_folded_form_serves_only_where_it_agrees(
    model: Path,
    folded: Path,
    factor: float,
    same: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = plain_session(shifted(folded, factor))
    monkeypatch.setattr("augserve.service.model.opening.open_tracked_session", lambda *_, **__: session)
    with caplog.at_level(logging.WARNING):
        predictor = Predictor.open(model, threads=1)
    adaptive, manifest = predictor.adaptive, predictor.manifest
    assert agree(Form(session, "folded"), adaptive, manifest) is same
    assert (predictor.tracked is not adaptive) is same
    assert ("its folded form answers otherwise" in caplog.text) is not same
    for tracking in (True, False):
        job = predictor.prepare(some_rows(4), PredictSettings(tracking=tracking))
        assert predictor.form_of(job.statistics) is (predictor.tracked if tracking else adaptive)
    blend = predictor.prepare(some_rows(4), PredictSettings(blend={"tracked_weight": 1.0}))
    assert predictor.form_of(blend.statistics) is adaptive  # by what was asked, not by what it amounts to


def test_no_folded_form_where_it_is_not_wanted(model: Path, folded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "augserve.service.model.opening.open_tracked_session", lambda *_, **__: plain_session(folded)
    )
    predictor = Predictor.open(model, threads=1, fold=False)
    assert predictor.tracked is predictor.adaptive


def test_another_number_of_logits_does_not_agree(model: Path, folded: Path) -> None:
    session = open_session(model, threads=1)
    assert not agree(FakeForm(), Form(session, "tiny"), read_manifest(session))
