"""The vocabulary of graphs: one divisor for NumPy, torch and files; an unknown operator is an error everywhere."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from augserve.errors import ModelFileError
from augserve.export.operators.functions import functions_of
from augserve.norms import AugNorm2d, BatchNorm2d, RobustNorm2d, StatisticsNorm
from augserve.norms.kernels.reference import power_of_range
from augserve.operators import (
    DOMAIN,
    ENDINGS,
    GROUP,
    NO_ENDING,
    NODE_INPUTS,
    OPERATORS,
    STEERING,
    TRACKED_WEIGHT,
    Operator,
    divisor,
    parted,
)
from augserve.runtime.tracked_form import tracked_form

ATTRIBUTES = {"eps": 0.5, "p": 0.25, "phi": 1.5, "rtol": 1e-5, "max_steps": 32}
SPREAD = np.array([0.0, 0.25, 1.0, 16.0])


def one_node(op_type: str, inputs: tuple[str, ...] = (), **attributes: float) -> onnx.ModelProto:
    """A file whose one node is a norm with parameters of four channels and tracked statistics; see SPREAD."""
    names = (*NODE_INPUTS, *inputs)
    node = helper.make_node(op_type, names, ["y"], domain=DOMAIN, **attributes)
    given = {"weight": np.ones(4), "bias": np.zeros(4), "running_mean": np.zeros(4), "running_spread": SPREAD}
    given |= {name: np.full(4, 1.5) for name in inputs}
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 1]),
        helper.make_tensor_value_info(GROUP, TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info(TRACKED_WEIGHT, TensorProto.FLOAT, ["N"]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 1])
    constants = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in given.items()]
    graph = helper.make_graph([node], "norm", values, [y], constants)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda operator: operator.name)
def test_every_reader_divides_by_the_same(operator: Operator) -> None:
    given = {name: ATTRIBUTES[name] for name in operator.attributes}
    ours = divisor(SPREAD, operator.spread, given, root=np.sqrt, power=np.power)
    torchs = divisor(torch.from_numpy(SPREAD), operator.spread, given, root=torch.sqrt, power=power_of_range)
    np.testing.assert_allclose(torchs.numpy(), ours, rtol=1e-12)
    model = one_node(operator.name, operator.inputs, **given)
    folded = tracked_form(model.SerializeToString())
    assert folded is not None
    model.functions.extend(functions_of(model.graph.node))
    x = np.ones((2, 4, 1), np.float32)
    steering = dict(zip(STEERING, (np.zeros(2, np.int64), np.ones(2, np.float32)), strict=True))
    for content, feed in ((model.SerializeToString(), {"x": x, **steering}), (folded, {"x": x})):
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        (y,) = session.run(None, feed)
        np.testing.assert_allclose(y[0, :, 0], 1 / ours, rtol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        BatchNorm2d(4, 0.5),
        AugNorm2d(4, 1.5, 0.5),
        RobustNorm2d(4, 0.25, 0.5),
        RobustNorm2d(4, 0.25, 0.5, track="range"),
    ],
    ids=["batch", "aug", "robust", "range"],
)
def test_a_layer_divides_as_its_operator_says(layer: StatisticsNorm) -> None:
    name, attributes = layer.operator()
    expected = divisor(SPREAD, OPERATORS[name].spread, attributes, root=np.sqrt, power=np.power)
    np.testing.assert_allclose(layer.divisor(torch.from_numpy(SPREAD)).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("ending", [*ENDINGS, NO_ENDING], ids=lambda ending: ending.suffix)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=lambda operator: operator.name)
def test_a_node_is_read_as_norm_and_ending(operator: Operator, ending: tuple[str, bool, bool]) -> None:
    assert parted(operator.name + ending[0]) == (operator, ending)


@pytest.mark.parametrize("op_type", ["LayerNorm", "Relu", "BatchNormRelu6", ""])
def test_an_unknown_operator_is_an_error(op_type: str) -> None:
    model = one_node(op_type or "?", eps=0.5)
    for read in (
        lambda: parted(op_type or "?"),
        lambda: tracked_form(model.SerializeToString()),
        lambda: functions_of(model.graph.node),
    ):
        with pytest.raises(ModelFileError, match=r"unknown operator augserve\..*BatchNorm, MedianNorm"):
            read()
