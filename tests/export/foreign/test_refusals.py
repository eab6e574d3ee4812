"""What cannot be converted: refused with the node, the reason and what to do, and nothing is written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx.version_converter
import pytest
from onnx import ModelProto, helper, numpy_helper

from augserve.errors import AugserveError, ConfigurationError, ExportError, ModelFileError
from augserve.export.foreign import convert
from augserve.export.foreign import load as convert_load
from augserve.export.foreign.convert import convert_onnx
from tests.export.foreign.files import BN, in_order, small, write
from tests.export.foreign.row_cases import cases

pytestmark = pytest.mark.slow


def refused(tmp_path: Path, model: ModelProto, error: type[AugserveError] = ExportError, **options: object) -> str:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    write(source, model)
    target.write_bytes(b"old")
    with pytest.raises(error) as caught:
        convert_onnx(source, target, **options)
    assert target.read_bytes() == b"old"
    assert sorted(child.name for child in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]
    return str(caught.value)


def named(model: ModelProto) -> ModelProto:
    for node in model.graph.node:
        node.name = node.name or f"node_of_{node.output[0]}"
    return model


# BN(x) stands for a norm of x.
REFUSED = cases(r"""
folded away :: no BatchNormalization node is left: they were folded ::
    c = Conv (x, k) y = Relu (c)
merged by a reshape :: 'node_of_n' cannot have groups: its rows are merged .* by Reshape 'node_of_m'; .* axis ::
    m = Reshape (x, shape) n = BN(m) y = Reshape (n, back)
moved by a transpose :: 'node_of_n' cannot have groups: its rows are .* moved to axis 2, by Transpose 'node_of_m' ::
    m = Transpose <perm = [2, 1, 0, 3]> (x) n = BN(m) y = Transpose <perm = [2, 1, 0, 3]> (n)
merged by a flatten :: 'node_of_n' cannot have groups: its rows are merged .* by (Flatten|Reshape) ::
    m = Flatten <axis = 2> (x) u = Unsqueeze (m, two) n = BN(r) r = Reshape (u, shape) y = Reshape (n, back)
mixed before a norm :: BatchNormalization 'node_of_y' cannot have groups: ReduceMean 'node_of_m' reduces the axis ::
    m = ReduceMean (x, zero) d = Sub (x, m) y = BN(d)
mixed after the norms :: output 'y' has not one row .*: ReduceMax 'node_of_m' reduces ::
    n = BN(x) m = ReduceMax (n, zero) y = Sub (n, m)
an output without rows :: output 'y' has not one row .*: ReduceSum 'node_of_y' reduces ::
    n = BN(x) y = ReduceSum <keepdims = 0> (n, all)
an output of merged rows :: output 'y' has not one row .* merged .* by Reshape 'node_of_y' ::
    n = BN(x) y = Reshape (n, shape)
a parameter that is computed :: 'node_of_y' takes its parameter 'v' from an input ::
    n = BN(x) m = ReduceMean <keepdims = 0> (n, all) y = BatchNormalization (n, bn_scale, v, bn_mean,
    bn_var) v = Expand (m, three)
training mode :: BatchNormalization 'node_of_y' is in training mode \(training_mode=1\).*evaluation mode ::
    y, a, b = BatchNormalization <training_mode = 1> (x, bn_scale, bn_bias, bn_mean, bn_var)
inside control flow :: BatchNormalization that makes 't' lies inside If 'node_of_y' ::
    m = ReduceMax <keepdims = 0> (x, all) f = Constant <value_float = 0.5> () c = Greater (m, f) y = If (c)
    <then_branch = a () => (float t) { t = BN(x) }, else_branch = b () => (float e) { e = Neg (x) }>
inside a loop :: BatchNormalization that makes 'after' lies inside Loop 'node_of_y' ::
    n = BN(x) count = Constant <value_int = 2> () yes = Cast <to = 9> (count) y = Loop (count, yes, n) <body
    = b (int64 i, bool go, float[n, 3, 4, 4] before) => (bool on, float[n, 3, 4, 4] after) { on = Identity
    (go) after = BN(before) }>
""")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(name: str, tmp_path: Path) -> None:
    words, body = REFUSED[name]
    model = small(re.sub(r"BN\((\w+)\)", lambda found: BN.format(found[1]), body), weights={"k": (3, 3, 2, 2)})
    constants = {"shape": [-1, 3, 4, 1] if name == "merged by a flatten" else [-1, 3, 2, 2], "back": [-1, 3, 4, 4]}
    for key, value in {**constants, "zero": [0], "two": [2], "all": [0, 1, 2, 3], "three": [3]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), key))
    told = refused(tmp_path, named(in_order(model)))
    assert re.search(words, told), told


def test_old_forms_of_training_mode_are_refused(tmp_path: Path) -> None:
    body = "y, a, b, c, d = BatchNormalization (x, bn_scale, bn_bias, bn_mean, bn_var)"
    model = small(body)
    model.opset_import[0].version = 9
    assert "BatchNormalization 'node_of_y' is in training mode (5 outputs)" in refused(tmp_path, named(model))
    model.graph.node[0].output[1:] = ["", "", "", ""]
    write(tmp_path / "in.onnx", model)
    convert_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    model.graph.node[0].attribute.append(helper.make_attribute("spatial", 0))
    assert "'node_of_y' has spatial=0" in refused(tmp_path, model)


def test_parameters_from_an_input_are_refused(tmp_path: Path) -> None:
    model = small(f"y = {BN.format('x')}")
    tensor = next(t for t in model.graph.initializer if t.name == "bn_mean")
    model.graph.initializer.remove(tensor)
    model.graph.input.append(helper.make_tensor_value_info("bn_mean", tensor.data_type, tensor.dims))
    assert "'node_of_y' takes its parameter 'bn_mean' from an input" in refused(tmp_path, named(model))


def test_a_network_that_runs_with_one_row_only_is_refused(tmp_path: Path) -> None:
    body = f"n = {BN.format('x')} f = Flatten (n) y = Concat <axis = 1> (f, token)"
    model = small(body, inputs="float[1, 3, 4, 4] x", weights={"token": (1, 2)})
    told = refused(tmp_path, model)
    assert "does not run with 3 rows at a time" in told
    assert "dynamic first axis" in told


def test_names_and_types_that_conversion_cannot_keep(tmp_path: Path) -> None:
    model = small(f"y = {BN.format('group')}", inputs="float[n, 3, 4, 4] group")
    assert "the input 'group' has the name of one that conversion adds; rename it" in refused(tmp_path, model)
    model = small(f"group = {BN.format('x')}", outputs="group")
    assert "the output 'group' has the name" in refused(tmp_path, model)
    model = small(f"y = {BN.format('x')}", inputs="float[n, 3, 4, 4] x, string[n] words")
    assert "the input 'words' holds STRING" in refused(tmp_path, model)
    model = small(f"y = {BN.format('x')}", inputs="float x")
    assert "no input has an axis for rows" in refused(tmp_path, model)
    model = small(f"y = {BN.format('x')}")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert "'x' is no tensor of known rank" in refused(tmp_path, model)


def test_names_that_would_steer_a_terminal_are_refused(tmp_path: Path) -> None:
    model = small(f"y = {BN.format('x')}")
    model.graph.node[0].name = "norm\x1b[2J"
    assert "the manifest cannot hold name of the file: " in refused(tmp_path, model)
    model = small(f"y = {BN.format('x')}")
    model.graph.input[0].name = model.graph.node[0].input[0] = "x\x1b[2J"
    assert "has control characters" in refused(tmp_path, model)


def test_files_that_are_not_foreign_networks(tmp_path: Path) -> None:
    good = small(f"y = {BN.format('x')}")
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    write(source, good)
    for content, words in (
        (b"", "not an ONNX file"),
        (b"PK\x03\x04 no", "not an ONNX file"),
        (good.SerializeToString()[:-40], None),
    ):
        source.write_bytes(content)
        with pytest.raises((ModelFileError, ExportError), match=words):
            convert_onnx(source, target)
    with pytest.raises(ModelFileError, match="found nothing"):
        convert_onnx(tmp_path / "missing.onnx", target)
    with pytest.raises(ModelFileError, match="found a folder"):
        convert_onnx(tmp_path, target)
    write(source, good)
    convert_onnx(source, target)
    with pytest.raises(ExportError, match="written by augserve; convert the file that it was made of"):
        convert_onnx(target, tmp_path / "again.onnx")
    with pytest.raises(ExportError, match="another file to write"):
        convert_onnx(source, source)
    with pytest.raises(ExportError, match="this is a folder"):
        convert_onnx(source, tmp_path)
    with pytest.raises(ExportError, match="no such folder"):
        convert_onnx(source, tmp_path / "nowhere" / "out.onnx")
    good.opset_import[0].version = 8
    assert "expected opset 9 or newer; the file has 8" in refused(tmp_path, good)
    good.opset_import[0].version = 99
    assert "cannot run the network" in refused(tmp_path, good, ModelFileError)


def test_an_opset_that_cannot_be_raised_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(f"n = {BN.format('x')} y = theirs.Unknown (n)")
    model.opset_import[0].version = 12
    model.opset_import.append(helper.make_opsetid("theirs", 1))
    assert "cannot run the network" in refused(tmp_path, model, ModelFileError)
    known = small(f"n = {BN.format('x')} y = Relu (n)")
    known.opset_import[0].version = 12

    def no_adapter(*_: object) -> None:
        raise RuntimeError("No Adapter From Version $12 for Relu")

    monkeypatch.setattr(onnx.version_converter, "convert_version", no_adapter)
    told = refused(tmp_path, known)
    assert "opset 12 and cannot be raised to 18: No Adapter From Version $12 for Relu; export it again" in told


def test_wrong_norms_are_refused(tmp_path: Path) -> None:
    model = small(f"y = {BN.format('x')}")
    assert "choose one of: aug, batch" in refused(tmp_path, model, ConfigurationError, norm="robust")
    assert "phi" in refused(tmp_path, model, ConfigurationError, norm="aug", phi=0.5)


def test_more_than_two_gigabytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(f"y = {BN.format('x')}")
    monkeypatch.setattr(convert_load, "LARGEST", 10)
    assert "2 GB" in refused(tmp_path, model)
    monkeypatch.undo()
    monkeypatch.setattr(convert, "LARGEST", 10)
    assert "2 GB" in refused(tmp_path, model)


@pytest.mark.parametrize(
    ("spoilt", "check"),
    [("network", "tracked"), ("operator", "norms against definition"), ("file", "batch")],
)
def test_a_conversion_that_changes_answers_is_not_written(
    spoilt: str, check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part of the conversion is spoilt in turn: the report has to see it."""
    model = small(f"y = {BN.format('x')}")
    if spoilt == "network":  # the original says something else than the network that was taken from it
        raised = convert.raise_opset

        def other_mean(network: ModelProto) -> ModelProto:
            other = ModelProto()
            other.CopyFrom(raised(network))
            mean = next(t for t in other.graph.initializer if t.name == "bn_mean")
            mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean) + np.float32(0.01), "bn_mean"))
            return other

        monkeypatch.setattr(convert, "raise_opset", other_mean)
    elif spoilt == "operator":  # it has another exponent than was asked for
        made = convert.operator_for
        monkeypatch.setattr(convert, "operator_for", lambda norm, phi, eps: made(norm, phi - 0.3, eps))
    else:  # the file has another exponent than the network that was looked at
        made_file = convert.fused

        def other_operator(network: ModelProto) -> ModelProto:
            changed = made_file(network)
            for node in changed.graph.node:
                for attribute in node.attribute:
                    if attribute.name == "phi":
                        attribute.f -= 0.3
            return changed

        monkeypatch.setattr(convert, "fused", other_operator)
    assert f"parity failed ({check}" in refused(tmp_path, model, norm="aug")
