"""One file for images of several sizes: answers, refusals, and what is in it once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from augserve.errors import ExportError, InputError
from augserve.export import export_onnx, open_session
from augserve.export.sizes import merge_sizes
from augserve.models import build_model
from augserve.norms import AugNorm2d, use_statistics
from augserve.runtime import check_rows, read_manifest, run_rows
from augserve.statistics import Statistics
from tests.export.conftest import small_network
from tests.export.tracing.test_conv_norm import Residual, drawn, exported, random
from tests.tolerances import KERNEL, PARITY

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]
Merged = tuple[nn.Module, dict[tuple[int, int], ModelProto], ModelProto]
SIZES = [(12, 10), (8, 8), (10, 12)]


def session(proto: ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def merged() -> Merged:
    network = drawn(Residual())
    models = {size: exported(network, random(2, 3, *size, dtype=torch.float32)) for size in SIZES}
    model = merge_sizes(models)
    onnx.checker.check_model(model, full_check=True)
    return network, models, model


def test_a_file_of_several_sizes_is_exported_and_checks_what_it_is_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model("resnet20", norm="aug", conv_norm=True)
    example = torch.randn(6, 3, 16, 16)
    network(example)
    path = tmp_path / "m.onnx"
    report = export_onnx(network.eval(), path, example=example, sizes=[(24, 20)])
    assert {check.name.partition("rows, ")[2] for check in report.checks if "rows" in check.name} == {
        "16 x 16",
        "24 x 20",
    }
    manifest = read_manifest(open_session(path))
    assert (manifest.shape, manifest.sizes) == ([3, 16, 16], [(16, 16), (24, 20)])
    images = torch.randn(5, 3, 24, 20)
    with torch.no_grad(), use_statistics(network, Statistics("batch")):
        expected = network(images).numpy()
    answer = run_rows(open_session(path), images.numpy(), None, np.zeros(5, np.float32))
    np.testing.assert_allclose(answer, expected, atol=PARITY)
    assert check_rows(images.numpy(), manifest).shape == images.shape
    with pytest.raises(InputError, match=r"\(N, 3, 16, 16\) or \(N, 3, 24, 20\); got \(2, 3, 20, 24\)"):
        check_rows(np.zeros((2, 3, 20, 24)), manifest)
    with pytest.raises(ExportError, match="in float32 only"):
        export_onnx(network, path, example=example, sizes=[(24, 20)], precision="float16")


@pytest.mark.parametrize("size", SIZES)
def test_each_size_answers_as_its_own_file(merged: Merged, size: tuple[int, int]) -> None:
    network, models, model = merged
    x = random(5, 3, *size, seed=1, dtype=torch.float32)
    answer = session(model).run(None, {"input": x.numpy()})[0]
    assert np.array_equal(answer, session(models[size]).run(None, {"input": x.numpy()})[0])
    with torch.no_grad():
        expected = network(x).numpy()
    np.testing.assert_allclose(answer, expected, rtol=0, atol=KERNEL * np.abs(expected).max())
    reference = onnx.reference.ReferenceEvaluator(model).run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(reference, expected, rtol=0, atol=KERNEL * np.abs(expected).max())


@pytest.mark.parametrize("size", [(12, 12), (16, 4), (12, 8), (1, 1), (0, 0), (24, 20)])
def test_other_size_fails_and_names_those_there_are(merged: Merged, size: tuple[int, int]) -> None:
    x = np.zeros((1, 3, *size), np.float32)
    with pytest.raises(Exception, match="images of 12x10, 8x8 or 10x12"):
        session(merged[2]).run(None, {"input": x})
    with pytest.raises(ValueError, match="reshape"):
        onnx.reference.ReferenceEvaluator(merged[2]).run(None, {"input": x})


def test_equal_tensors_are_there_once(merged: Merged) -> None:
    contents = [
        (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        for tensor in merged[2].graph.initializer
    ]
    assert len(contents) == len(set(contents))
    weights = [tensor for tensor in merged[2].graph.initializer if list(tensor.dims) == [8, 8, 3, 3]]
    assert len(weights) == 2  # conv2's and twice's, for three sizes


def test_input_is_of_any_size_and_the_rest_as_it_was(merged: Merged) -> None:
    _, models, model = merged
    (given,), (answer,) = session(model).get_inputs(), session(model).get_outputs()
    assert (given.name, given.shape) == ("input", ["N", 3, "H", "W"])
    assert (answer.name, answer.shape) == ("logits", ["N", 5])
    assert model.opset_import == models[SIZES[0]].opset_import


def test_adaptive_files_keep_groups_and_modes(tmp_path: Path) -> None:
    network, sizes, models = small_network(AugNorm2d), [(8, 8), (6, 9)], {}
    for size in sizes:
        export_onnx(network, tmp_path / "m.onnx", example=random(9, 3, *size, dtype=torch.float32))
        models[size] = onnx.load(tmp_path / "m.onnx")
    opened = session(merge_sizes(models))
    group = np.array([0, 1, 2, 0, 1, 2, 1], np.int64)
    modes = [Statistics("batch"), Statistics("tracked"), Statistics("blend", tracked_weight=0.4)]
    weights = np.array([0.0, 1.0, 0.4], np.float32)[group]
    for size in sizes:
        x = random(7, 3, *size, dtype=torch.float32)
        with torch.no_grad(), use_statistics(network, modes, torch.from_numpy(group)):
            expected = network(x).numpy()
        np.testing.assert_allclose(run_rows(opened, x.numpy(), group, weights), expected, rtol=0, atol=PARITY)


def model_of(size: tuple[int, int], **values: Array) -> ModelProto:
    """Return y = a x + b of images of one channel."""
    height, width = size
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, height, width])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, height, width])
    nodes = [helper.make_node("Mul", ["x", "a"], ["t"]), helper.make_node("Add", ["t", "b"], ["y"])]
    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in values.items()]
    graph = helper.make_graph(nodes, "g", [shape], [answer], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_names_may_mean_different_tensors() -> None:
    first, second = model_of((2, 3), a=2.0, b=5.0), model_of((3, 2), a=3.0, b=2.0)
    for node in second.graph.node:  # a value in one model is called as a tensor of the other
        node.input[:] = ["b" if name == "t" else "t" if name == "b" else name for name in node.input]
        node.output[:] = ["b" if name == "t" else name for name in node.output]
    second.graph.initializer[1].name = "t"
    opened = session(merge_sizes({(2, 3): first, (3, 2): second}))
    for shape, a, b in (((2, 3), 2.0, 5.0), ((3, 2), 3.0, 2.0)):
        x = np.arange(12, dtype=np.float32).reshape(2, 1, *shape)
        np.testing.assert_array_equal(opened.run(None, {"x": x})[0], a * x + b)


def test_models_that_are_not_one_network_are_refused() -> None:
    one, two = model_of((2, 3), a=1.0, b=1.0), model_of((3, 2), a=1.0, b=1.0)
    with pytest.raises(ExportError, match="at least one"):
        merge_sizes({})
    with pytest.raises(ExportError, match=r"sizes 2x3 or 4x4 .*got none"):
        merge_sizes({(2, 3): one, (4, 4): two})
    other = ModelProto()
    other.CopyFrom(two)
    other.opset_import[0].version = 19
    with pytest.raises(ExportError, match="one opset; got 18 and 19"):
        merge_sizes({(2, 3): one, (3, 2): other})
    other.CopyFrom(two)
    other.graph.input[0].name = "z"
    with pytest.raises(ExportError, match="same inputs and outputs"):
        merge_sizes({(2, 3): one, (3, 2): other})
