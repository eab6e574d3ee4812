"""Particular files: float16, functions, branches, external data, names, given rows; and what becomes servable."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import helper

from augserve.errors import InputError, ModelFileError
from augserve.export.foreign import parity as convert_parity
from augserve.export.foreign.convert import convert_onnx
from augserve.manifest import METADATA_KEY, UNSEALED
from augserve.runtime import open_session, read_manifest, rows_with_own_statistics, run_rows
from augserve.runtime.seal import seal
from augserve.service import Predictor
from tests.export.foreign import files
from tests.export.foreign.files import BN, close, expected, network, norm, small, write

pytestmark = pytest.mark.slow


def test_float16_networks_have_float32_statistics(tmp_path: Path) -> None:
    original, target = write(tmp_path / "half.onnx", files.half()), tmp_path / "out.onnx"
    convert_onnx(tmp_path / "half.onnx", target, norm="aug")
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(5, 3, 6, 6)) * 30 + 100).astype(np.float16)  # sums beyond float16's range
    feed = {"x": x, "group": np.zeros(5, np.int64), "tracked_weight": np.zeros(5, np.float32)}
    (answer,) = open_session(target).run(None, feed)
    (right,) = expected(original, {"x": x}, kind="aug")
    assert answer.dtype == np.float16
    np.testing.assert_allclose(answer, right, atol=0.02)


def test_a_file_of_fixed_size_can_be_served(tmp_path: Path) -> None:
    files.from_torch(tmp_path / "torch.onnx", 17, dynamo=False)
    convert_onnx(tmp_path / "torch.onnx", tmp_path / "out.onnx")
    manifest = read_manifest(open_session(tmp_path / "out.onnx"))
    assert (manifest.shape, manifest.classes) == ([3, 8, 8], ["0", "1", "2", "3"])
    assert rows_with_own_statistics(manifest) == 2  # the norm after the linear layer has one value a row
    answer = Predictor.open(tmp_path / "out.onnx").predict(np.zeros((2, 3, 8, 8), np.float32))
    assert len(answer["predictions"]) == 2


def test_given_rows_and_shapes_are_used(tmp_path: Path) -> None:
    write(tmp_path / "paddle.onnx", files.paddle())
    source, target = tmp_path / "paddle.onnx", tmp_path / "out.onnx"
    rows = np.random.default_rng(0).normal(size=(4, 3, 9, 7)).astype(np.float32)
    convert_onnx(source, target, example={"x": rows})
    assert read_manifest(open_session(target)).norms[0].positions == 63
    convert_onnx(source, target, shapes={"x": (3, 10, 12)})
    assert read_manifest(open_session(target)).norms[0].positions == 120
    assert run_rows(open_session(target), rows).shape == (4, 2)
    for example in ({"y": rows}, {"x": rows.astype(np.float64)}, {"x": rows[:, :2]}, {"x": rows[:0]}, {}):
        with pytest.raises(InputError, match="expected"):
            convert_onnx(source, target, example=example)
    for shapes in ({"y": (3, 8, 8)}, {"x": (2, 8, 8)}, {"x": (8, 8)}, {"x": (3, 0, 8)}):
        with pytest.raises(InputError, match="expected"):
            convert_onnx(source, target, shapes=shapes)


def test_large_rows_are_proven_with_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in.onnx", small(f"y = {BN.format('x')}"))
    many = convert_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    monkeypatch.setattr(convert_parity, "MANY_VALUES", 47)
    few = convert_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert {check.rows for check in many.checks} > {7}
    assert max(check.rows for check in few.checks) == 4
    assert len(many.checks) == len(few.checks)


def test_names_that_conversion_adds_are_freed_inside(tmp_path: Path) -> None:
    body = f"group = Relu (x) tracked_weight = {BN.format('group')} y = Neg (tracked_weight)"
    original = write(tmp_path / "in.onnx", small(body))
    convert_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    x = np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype(np.float32)
    feed = {"x": x, "group": np.zeros(3, np.int64), "tracked_weight": np.zeros(3, np.float32)}
    close(open_session(tmp_path / "out.onnx").run(None, feed), expected(original, {"x": x}), 1e-5)


def test_norms_of_weights_stay_what_they_are(tmp_path: Path) -> None:
    body = f"w = {BN.format('kernel')} c = Conv (x, w) y = {BN.format('c')}"
    original = write(tmp_path / "in.onnx", small(body, weights={"kernel": (3, 3, 2, 2)}))
    convert_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [layer.name for layer in read_manifest(open_session(tmp_path / "out.onnx")).norms] == ["y"]
    x = np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype(np.float32)
    tracked = {"x": x, "group": np.zeros(3, np.int64), "tracked_weight": np.ones(3, np.float32)}
    right = expected(original, {"x": x}, tracked_weight=1.0)
    close(open_session(tmp_path / "out.onnx").run(None, tracked), right, 1e-5)


def test_norms_in_functions_and_known_branches_are_found(tmp_path: Path) -> None:
    function = onnx.parser.parse_function(
        f'<opset_import: ["" : 18], domain: "theirs"> Block (x, bn_scale, bn_bias, bn_mean, bn_var) => (y)'
        f"{{ r = Relu (x) y = {BN.format('r')} }}"
    )
    body = "f = theirs.Block (x, bn_scale, bn_bias, bn_mean, bn_var) y = Neg (f)"
    model = small(body)
    model.opset_import.append(helper.make_opsetid("theirs", 1))
    model.functions.append(function)
    branching = small(
        f"""s = Shape (x) k = Constant <value_int = 1> () c = Gather (s, k) three = Constant <value_int = 3> ()
        is = Equal (c, three) y = If (is) <
            then_branch = yes () => (float t) {{ r = Relu (x) t = {BN.format("r")} }},
            else_branch = no () => (float e) {{ e = Identity (x) }}>"""
    )
    x = np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype(np.float32)
    feed = {"x": x, "group": np.zeros(3, np.int64), "tracked_weight": np.zeros(3, np.float32)}
    for name, original in (("function", model), ("branch", branching)):
        write(tmp_path / f"{name}.onnx", original)
        convert_onnx(tmp_path / f"{name}.onnx", tmp_path / "out.onnx")
        right = expected(
            small(f"r = Relu (x) b = {BN.format('r')} y = {'Neg' if name == 'function' else 'Identity'} (b)"),
            {"x": x},
        )
        close(open_session(tmp_path / "out.onnx").run(None, feed), right, 1e-5)


def test_external_data_are_read_from_the_folder(tmp_path: Path) -> None:
    path, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    model = network(
        "g (float[n, 3, 8, 8] x) => (float[n, 4, 6, 6] y) { c = Conv (x, k) y = " + BN.format("c") + " }",
        15,
        {"k": (4, 3, 3, 3)} | norm("bn", 4),
        ir_version=8,
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    right = expected(model, {"x": x}, tracked_weight=1.0)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    convert_onnx(path, target)
    close([run_rows(open_session(target), x)], right, 1e-5)
    (tmp_path / "inner").mkdir()
    inner = tmp_path / "inner" / "in.onnx"
    for location in ("../weights.bin", str(tmp_path / "weights.bin"), "link.bin"):
        climbing = onnx.load(path, load_external_data=False)
        for tensor in climbing.graph.initializer:
            next(entry for entry in tensor.external_data if entry.key == "location").value = location
        write(inner, climbing)
        if location == "link.bin":
            (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "weights.bin")
        with pytest.raises(ModelFileError, match="outside the file's folder"):
            convert_onnx(inner, target)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelFileError, match="not there"):
        convert_onnx(path, target)


def test_a_manifest_that_the_graph_belies_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in.onnx", files.tokens())
    convert_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx", native="off")
    manifest = read_manifest(open_session(tmp_path / "out.onnx")).model_dump(mode="json")
    changes = {"dtype": "float64", "name": "tokens", "shape": [7], "rows": False}
    for part, (field, value) in itertools.product(("inputs", "outputs"), changes.items()):
        changed = {**manifest, part: [{**manifest[part][0], field: value}, *manifest[part][1:]]}
        proto = onnx.load(tmp_path / "out.onnx")
        text = json.dumps(changed | {"content_sha256": UNSEALED})
        helper.set_model_props(proto, {METADATA_KEY: text})
        (tmp_path / "belied.onnx").write_bytes(seal(proto.SerializeToString()))
        with pytest.raises(ModelFileError, match=f"its manifest promises {part} .*; convert the file again"):
            open_session(tmp_path / "belied.onnx")


def test_a_file_of_several_inputs_is_run_by_its_session(tmp_path: Path) -> None:
    write(tmp_path / "in.onnx", files.tokens())
    convert_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx", native="off")
    with pytest.raises(InputError, match="takes ids, features, temperature, weights: call the session's run"):
        run_rows(open_session(tmp_path / "out.onnx"), np.zeros((2, 6), np.float32))


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("operator", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_old_resizing_keeps_its_mapping_of_coordinates(
    operator: str, opset: int, mode: str, tmp_path: Path
) -> None:
    text = f"""g (float[n, 3, 5, 5] x) => (float[n, 3, 10, 10] y) <float[4] twice = {{1.0, 1.0, 2.0, 2.0}}> {{
        b = {BN.format("x")} y = {operator} <mode = "{mode}"> (b, twice) }}"""
    write(tmp_path / "in.onnx", network(text, opset, norm("bn", 3)))
    convert_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 5)).astype(np.float32)
    theirs = ort.InferenceSession(str(tmp_path / "in.onnx"), providers=["CPUExecutionProvider"])
    close([run_rows(open_session(tmp_path / "out.onnx"), x)], theirs.run(None, {"x": x}), 1e-5)


@pytest.mark.parametrize("opset", range(9, 25))
def test_every_opset_converts(opset: int, tmp_path: Path) -> None:
    model = small(f"n = {BN.format('x')} r = Relu (n) y = Softmax <axis = 1> (r)")
    model.opset_import[0].version = opset
    write(tmp_path / "in.onnx", model)
    convert_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx", native="off")
    assert read_manifest(open_session(tmp_path / "out.onnx")).opset == max(opset, 18)
