"""Opening a file: what is not an augserve file, or not what it says, is one ModelFileError that names it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augserve.errors import ConfigurationError, InputError, ModelFileError
from augserve.manifest import METADATA_KEY, Manifest
from augserve.native import find_library
from augserve.runtime import (
    check_rows,
    kernels_of,
    open_session,
    read_manifest,
    rows_with_own_statistics,
    run_rows,
    softmax,
)
from tests.service.tiny import CLASSES, SHAPE, expected_logits, save_sealed, some_rows, write_model

MANIFEST = Manifest(mode="tracked", architecture="tiny", classes=["a", "b"], shape=[3, 2, 2], opset=18)
MODES = ("adaptive", "batch", "tracked")


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        open_session(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message


def edited(path: Path, mode: str = "adaptive", **changes: object) -> onnx.ModelProto:
    return onnx.load(write_model(path, mode, **changes))


@pytest.mark.parametrize("mode", MODES)
def test_a_good_file_opens_and_says_what_it_is(tmp_path: Path, mode: str) -> None:
    path = write_model(tmp_path / "good.onnx", mode)
    for given_path in (path, str(path)):
        manifest = read_manifest(open_session(given_path), given_path)
        assert (manifest.mode, manifest.classes, manifest.shape) == (mode, CLASSES, SHAPE)


def test_a_missing_file_and_a_folder_say_what_was_found(tmp_path: Path) -> None:
    assert "expected an .onnx file, found nothing" in refusal(tmp_path / "none.onnx")
    assert "expected an .onnx file, found nothing" in refusal(tmp_path / "none" / "a.onnx")
    assert "expected an .onnx file, found a folder" in refusal(tmp_path)


def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path: Path) -> None:
    assert "found nothing" in refusal(tmp_path / ("a" * 300 + ".onnx"))


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x00" * 100, b"\x89PNG\r\n\x1a\n", bytes(range(256)) * 50])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    refusal(path)


def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for length in (*range(0, len(whole), max(1, len(whole) // 150)), len(whole) - 1):
        path.write_bytes(whole[:length])
        refusal(path)


def test_a_file_with_one_changed_byte_is_refused(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "changed.onnx"
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 300):
        content = bytearray(whole)
        content[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(content)
        assert "\n" not in refusal(path)


def test_a_foreign_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    message = refusal(write_model(tmp_path / "foreign.onnx", manifest=False))
    assert "without an augserve manifest" in message
    assert "augserve export" in message


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "damaged (mode"),
        ({"mode": "adaptive"}, "damaged (architecture"),
        ({"format_version": 2}, "format 2 is newer than 1"),
        ({"format_version": 99, "mode": ["of", "the", "future"]}, "format 99 is newer than 1"),
    ],
)
def test_a_damaged_or_newer_manifest_is_refused(tmp_path: Path, document: dict[str, object], words: str) -> None:
    path = tmp_path / "a.onnx"
    save_sealed(edited(path), path, document)
    assert words in refusal(path)


@pytest.mark.parametrize("text", ["", '{"mode": "adap', "{}", MANIFEST.model_dump_json()])
def test_a_manifest_without_a_seal_that_holds_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.onnx"
    model = edited(path)
    onnx.helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, path)
    assert ("changed since it was exported" if "mode" in text and "}" in text else "no whole augserve") in refusal(
        path
    )


def test_every_change_of_a_file_is_noticed(tmp_path: Path) -> None:
    """An exchanged weight, another mode, a name: nothing that answers or says otherwise is opened."""
    path = write_model(tmp_path / "a.onnx", "tracked")
    model = onnx.load(path)
    manifest = json.loads(model.metadata_props[0].value)
    for change in ({"mode": "batch"}, {"classes": CLASSES[::-1]}, {"content_sha256": "0" * 64}):
        onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps({**manifest, **change})})
        onnx.save(model, path)
        assert "changed since it was exported" in refusal(path)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(manifest)})
    model.graph.initializer[0].float_data[0] += 1e-3
    onnx.save(model, path)
    assert "changed since it was exported" in refusal(path)


def test_a_manifest_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.onnx")
    content = path.read_bytes()
    assert content.count(b'"tiny"') == 1
    path.write_bytes(content.replace(b'"tiny"', b'"\xff\xfe\xff\xfe"'))
    refusal(path)


@pytest.mark.parametrize(
    ("graph", "changes", "words"),
    [
        ("adaptive", {"mode": "tracked"}, "promises mode tracked with inputs input; the graph has input, group"),
        ("adaptive", {"mode": "batch"}, "promises mode batch with inputs input; the graph has input, group"),
        ("tracked", {"mode": "adaptive"}, "with inputs input, group, tracked_weight; the graph has input;"),
        ("adaptive", {"shape": [3, 8, 9]}, "promises input as tensor(float) (N, 3, 8, 9), any N; the graph has"),
        ("adaptive", {"shape": [3, 8]}, "promises input as tensor(float) (N, 3, 8), any N; the graph has"),
        ("adaptive", {"shape": []}, "promises input as tensor(float) (N), any N; the graph has"),
        ("adaptive", {"classes": ["a", "b", "c"]}, "promises logits as tensor(float) (N, 3), any N; the graph has"),
        ("adaptive", {"classes": []}, "promises logits as tensor(float) (N, 0), any N; the graph has"),
        (
            "adaptive",
            {"preprocessing": {"height": 9, "width": 8, "color": "RGB", "mean": [0] * 3, "std": [1] * 3}},
            "preprocessing does not make rows of shape [3, 8, 8]",
        ),
        (
            "adaptive",
            {"preprocessing": {"height": 8, "width": 8, "color": "L", "mean": [0], "std": [1]}},
            "preprocessing does not make rows of shape [3, 8, 8]",
        ),
    ],
)
def test_a_manifest_that_the_graph_belies_is_refused(
    tmp_path: Path, graph: str, changes: dict[str, object], words: str
) -> None:
    path = write_model(tmp_path / "a.onnx", graph)
    model = onnx.load(path)
    manifest = json.loads(model.metadata_props[0].value)
    save_sealed(model, path, {**manifest, **changes})
    assert words in refusal(path)


def retyped(value: onnx.ValueInfoProto, kind: int) -> None:
    value.type.tensor_type.elem_type = kind


def test_group_ids_of_another_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = edited(path)
    retyped(model.graph.input[1], onnx.TensorProto.INT32)  # every operator that takes it takes int32 as well
    save_sealed(model, path)
    refusal(path)


@pytest.mark.parametrize("name", ["input", "tracked_weight"])
def test_numbers_of_another_type_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.onnx"
    model = edited(path)
    retyped(next(value for value in model.graph.input if value.name == name), onnx.TensorProto.DOUBLE)
    cast = onnx.helper.make_node("Cast", [name], ["as_float"], to=onnx.TensorProto.FLOAT)
    for node in model.graph.node:
        node.input[:] = ["as_float" if given == name else given for given in node.input]
    model.graph.node.insert(0, cast)
    save_sealed(model, path)
    assert f"promises {name} as tensor(float)" in refusal(path)
    assert "the graph has tensor(double)" in refusal(path)


def test_logits_of_another_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = edited(path)
    model.graph.node[-1].output[0] = "as_float"
    model.graph.node.append(
        onnx.helper.make_node("Cast", ["as_float"], ["logits"], to=onnx.TensorProto.INT64),
    )
    retyped(model.graph.output[0], onnx.TensorProto.INT64)
    save_sealed(model, path)
    refusal(path)


def test_a_fixed_number_of_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = edited(path, "tracked")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    save_sealed(model, path)
    refusal(path)


def test_a_second_output_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = edited(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info("off", onnx.TensorProto.FLOAT, ["N", 3]))
    save_sealed(model, path)
    assert "expected one output, logits; the graph has logits, off" in refusal(path)


def test_native_and_providers_that_are_not_here_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "a.onnx")
    with pytest.raises(ConfigurationError, match="unknown value of native 'yes'; choose one of: auto, off, on"):
        open_session(path, native="yes")
    with pytest.raises(ConfigurationError, match=r"unknown execution provider 'None'; .*CPUExecutionProvider"):
        open_session(path, providers=["CPUExecutionProvider", "None"])


def test_native_operators_are_looked_for_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_model(tmp_path / "a.onnx")
    assert kernels_of(open_session(path, native="off")).reason == "native operators are switched off"
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setenv("AUGSERVE_NATIVE_LIBRARY", str(broken))
    told = kernels_of(open_session(path))
    assert told.library is None
    assert str(broken) in told.reason
    assert "going on without native operators" in caplog.text
    with pytest.raises(ConfigurationError, match=r"native operators are wanted, but .*broken\.so"):
        open_session(path, native="on")
    monkeypatch.setenv("AUGSERVE_NATIVE_LIBRARY", str(tmp_path / "nowhere.so"))
    with pytest.raises(ConfigurationError, match=r"nowhere.so, found nothing; name the file, or unset"):
        open_session(path, native="on")
    monkeypatch.setenv("AUGSERVE_NATIVE", "off")
    assert kernels_of(open_session(path)).library is None
    monkeypatch.delenv("AUGSERVE_NATIVE")
    monkeypatch.delenv("AUGSERVE_NATIVE_LIBRARY")
    installed = find_library()
    if installed is not None:
        assert kernels_of(open_session(path)).library == installed
        assert kernels_of(open_session(path, native="on", library=installed)).library == installed
        monkeypatch.setenv("AUGSERVE_NATIVE", "on")
        assert kernels_of(open_session(path, library=installed)).library == installed
        with pytest.raises(ConfigurationError, match=r"native operators are wanted, but .*broken.so"):
            open_session(path, library=broken)


def test_left_out_group_and_weight_mean_one_group_and_tracked(tmp_path: Path) -> None:
    session = open_session(write_model(tmp_path / "a.onnx"), threads=1)
    rows = some_rows(5)
    everything = [[0, 1, 2, 3, 4]]
    np.testing.assert_allclose(run_rows(session, rows), expected_logits(rows, everything, [1.0]), atol=1e-5)
    one_group = run_rows(session, rows, tracked_weight=np.zeros(5, np.float32))
    np.testing.assert_allclose(one_group, expected_logits(rows, everything, [0.0]), atol=1e-5)
    group = np.array([0, 1, 0, 1, 1])
    np.testing.assert_array_equal(run_rows(session, rows, group), run_rows(session, rows))
    both = run_rows(session, rows, group, np.array([1, 0.25, 1, 0.25, 0.25], np.float32))
    np.testing.assert_allclose(both, expected_logits(rows, [[0, 2], [1, 3, 4]], [1.0, 0.25]), atol=1e-5)


@pytest.mark.parametrize(("mode", "weight"), [("tracked", 1.0), ("batch", 0.0)])
def test_files_of_one_mode_take_rows_alone(tmp_path: Path, mode: str, weight: float) -> None:
    session = open_session(write_model(tmp_path / "a.onnx", mode), threads=1)
    rows = some_rows(4)
    logits = run_rows(session, rows)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected_logits(rows, [[0, 1, 2, 3]], [weight]), atol=1e-5)


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int64", "uint8", ">f4"])
def test_rows_of_numbers_become_contiguous_float32(kind: str) -> None:
    rows = np.arange(24).reshape(2, 3, 2, 2).astype(kind)
    for form in (rows, rows.tolist(), np.asfortranarray(rows), rows[::-1][::-1]):
        checked = check_rows(form, MANIFEST)
        assert checked.dtype == np.float32
        assert checked.flags.c_contiguous
        np.testing.assert_array_equal(checked, np.arange(24).reshape(2, 3, 2, 2))


ROW = np.zeros((3, 2, 2)).tolist()
TOO_LARGE = np.full((1, 3, 2, 2), 1e39)


@pytest.mark.parametrize(
    ("rows", "expected", "got"),
    [
        (np.zeros((1, 3, 2, 3)), "rows of shape (N, 3, 2, 2)", "got (1, 3, 2, 3)"),
        (np.zeros((3, 2, 2)), "rows of shape (N, 3, 2, 2)", "got (3, 2, 2)"),
        (np.zeros((1, 1, 3, 2, 2)), "rows of shape (N, 3, 2, 2)", "got (1, 1, 3, 2, 2)"),
        (np.zeros(12), "rows of shape (N, 3, 2, 2)", "got (12)"),
        (0.5, "rows of shape (N, 3, 2, 2)", "got ()"),
        ([], "rows of shape (N, 3, 2, 2)", "got (0)"),
        (np.zeros((0, 3, 2, 2)), "at least 1 row", "got none"),
        ([ROW, ROW[:2]], "rows of equal shape (N, 3, 2, 2)", "got rows of different shapes"),
        ([ROW, [[[1], [2, 3]]] * 3], "rows of equal shape (N, 3, 2, 2)", "got rows of different shapes"),
        ([ROW, 1.0], "rows of equal shape (N, 3, 2, 2)", "got rows of different shapes"),
        ("text", "rows of numbers, shape (N, 3, 2, 2)", "got values of type <U4"),
        (np.full((1, 3, 2, 2), "1"), "rows of numbers", "got values of type <U1"),
        (np.full((1, 3, 2, 2), b"1"), "rows of numbers", "got values of type |S1"),
        (None, "rows of numbers", "got values of type object"),
        ({"rows": [1]}, "rows of numbers", "got values of type object"),
        ([[None]], "rows of numbers", "got values of type object"),
        ([10**400], "rows of numbers", "got values of type object"),
        (np.ones((1, 3, 2, 2), bool), "rows of numbers", "got values of type bool"),
        (np.ones((1, 3, 2, 2), complex), "rows of numbers", "got values of type complex128"),
        (np.zeros((1, 3, 2, 2), "datetime64[s]"), "rows of numbers", "got values of type datetime64[s]"),
        (np.full((1, 3, 2, 2), np.nan), "finite float32 numbers", "row 0 holds NaN or inf"),
        (np.full((1, 3, 2, 2), -np.inf), "finite float32 numbers", "row 0 holds NaN or inf"),
        (TOO_LARGE, "finite float32 numbers", "row 0 holds NaN or inf"),
        (np.concatenate([0 * TOO_LARGE, 0 * TOO_LARGE, -TOO_LARGE]), "finite float32 numbers", "row 2 holds"),
    ],
)
def test_other_rows_are_refused_with_what_was_expected_and_what_came(rows: object, expected: str, got: str) -> None:
    with pytest.raises(InputError) as caught:
        check_rows(rows, MANIFEST)
    assert f"expected {expected}" in str(caught.value)
    assert got in str(caught.value)


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
)


@given(NESTED)
def test_any_json_is_taken_or_refused(rows: object) -> None:
    with pytest.raises(InputError):  # nothing this small holds a row of (3, 2, 2) by chance
        check_rows(rows, MANIFEST)


def test_check_rows_does_not_change_what_it_was_given() -> None:
    rows = np.arange(12.0).reshape(1, 3, 2, 2)
    check_rows(rows, MANIFEST)
    np.testing.assert_array_equal(rows, np.arange(12.0).reshape(1, 3, 2, 2))


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
def test_softmax_gives_probabilities(logits: list[list[float]]) -> None:
    z = np.array(logits, np.float32)
    p = softmax(z)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    shifted = z.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        for row, probabilities in zip(shifted, p, strict=True):
            expected = [1 / np.exp(row - value).sum() for value in row]
            np.testing.assert_allclose(probabilities, expected, rtol=1e-9, atol=1e-300)


def test_a_group_needs_two_rows_only_where_a_layer_has_one_position() -> None:
    layers = [
        {"name": "norm", "kind": "batch", "num_features": 4, "positions": positions} for positions in (16, 1, 2)
    ]
    for norms, rows in (([], 1), (layers[:1], 1), (layers[2:], 1), (layers, 2)):
        assert rows_with_own_statistics(Manifest.model_validate({**MANIFEST.model_dump(), "norms": norms})) == rows
