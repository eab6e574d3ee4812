"""Where rows lie after each operator: kept ones are functions of their row alone, others are told why not."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from augserve.errors import ExportError, ModelFileError
from augserve.export.foreign.analyse import follow
from augserve.export.foreign.inputs import Ports, free_rows, ports_of, take_rows
from augserve.export.foreign.load import open_plain
from augserve.export.foreign.rows.axis import Kind, Mixed, Rows
from augserve.export.foreign.rows.rules import RULES
from tests.export.foreign.files import Shapes, in_order, network
from tests.export.foreign.row_cases import KEPT, MIXED

pytestmark = pytest.mark.slow

INPUTS = {
    "x": "float[n, 3, 4, 4] x",
    "v": "float[n, 6] v",
    "s": "float[n, 5, 4] s",
    "ids": "int64[n, 5] ids",
}
WEIGHTS: Shapes = {
    "table": (100, 4),
    "row": (1, 6),
    "w66": (6, 6),
    "w44": (4, 4),
    "k": (3, 3, 3, 3),
    "wl": (1, 12, 4),
    "rl": (1, 12, 3),
}
CONSTANTS = {
    "zero": 0, "one": 1, "i0": [0], "i1": [1], "i2": [2], "im1": [-1], "i02": [0, 2], "i12": [1, 2],
    "flat": [0, -1], "all": [1, -1], "back": [-1, 3, 4, 4], "merge": [-1, 16], "pads": [0, 1, 0, 1],
    "pads_rows": [1, 0, 0, 0], "starts": [0, 1], "ends": [1000, 3], "axes01": [0, 1],
}  # fmt: skip


def build(inputs: str, body: str) -> tuple[ModelProto, Ports]:
    """Put a case into a graph; statements may stand in any order."""
    text = f"g ({', '.join(INPUTS[name] for name in inputs.split())}) => (float y) {{ {body} }}"
    model = network(text, 18, WEIGHTS, ir_version=8)
    for name, value in CONSTANTS.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    in_order(model)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    ports = next(ports_of(model).guesses())
    free_rows(model, ports)
    return model, ports


def is_function_of_rows(model: ModelProto, ports: Ports) -> bool:
    """Whether some rows by themselves, in another order, get the answers that they get among others."""
    session, feed = open_plain(model.SerializeToString()), ports.random(6, seed=7)
    some = np.array([4, 0, 5])
    whole, part = (session.run(None, f)[0] for f in (feed, take_rows(ports, feed, some)))
    return len(whole) == 6 and len(part) == 3 and np.allclose(whole[some], part, rtol=1e-4, atol=1e-5)


def kind_of(model: ModelProto, ports: Ports) -> Kind:
    return follow(model, ports)[1]["y"]


@pytest.mark.parametrize("name", KEPT)
def test_rows_are_kept(name: str) -> None:
    model, ports = build(*KEPT[name])
    kind = kind_of(model, ports)
    assert isinstance(kind, Rows), kind
    assert kind.first
    assert is_function_of_rows(model, ports)


@pytest.mark.parametrize("name", MIXED)
def test_rows_that_mix_are_told_with_the_reason(name: str) -> None:
    inputs, words, body = MIXED[name]
    model, ports = build(inputs, body)
    kind = kind_of(model, ports)
    assert isinstance(kind, Mixed), kind
    assert re.search(words, kind.reason), kind.reason
    assert re.search(r"\w+ (that makes )?'\w+'", kind.reason), kind.reason


def test_every_rule_is_tried() -> None:
    cases = [(case[0], case[-1]) for case in (*KEPT.values(), *MIXED.values())]
    used = {node.op_type for case in cases for node in build(*case)[0].graph.node}
    tried = {RULES[name].__qualname__ for name in used & RULES.keys()}
    assert {rule.__qualname__ for rule in RULES.values()} == tried


STEPS = [
    "Relu", "Transpose", "Reshape", "ReduceSum", "ReduceMax", "Softmax", "Concat", "Slice", "MatMul", "Add",
    "Unsqueeze", "Squeeze", "Gather", "CumSum", "Flatten",
]  # fmt: skip


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_whatever_is_said_to_keep_its_rows_does(data: st.DataObject) -> None:
    """Random chains of operators: no answer that is called rows may depend on another row."""
    shape: list[int | str] = ["n", *data.draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3))]
    graph = helper.make_graph([], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], [])
    values = [("x", len(shape))]
    for k in range(data.draw(st.integers(1, 5))):
        name, rank = data.draw(st.sampled_from(values[-2:]))
        op, made = data.draw(st.sampled_from(STEPS)) if rank else "Relu", f"v{k}"
        axis = data.draw(st.integers(0, max(rank - 1, 0)))
        inputs, attributes, new_rank = [name], {}, rank

        def constant(value: object, k: int = k) -> str:
            graph.initializer.append(numpy_helper.from_array(np.array(value), f"c{k}_{len(graph.initializer)}"))
            return graph.initializer[-1].name

        if op == "Transpose":
            attributes = {"perm": data.draw(st.permutations(range(rank)))}
        elif op == "Reshape":
            target = data.draw(st.lists(st.sampled_from([0, 1, 2, 4, -1]), min_size=1, max_size=3))
            inputs.append(constant(np.array(target, np.int64)))
            new_rank = len(target)
        elif op.startswith("Reduce"):
            attributes = {"keepdims": data.draw(st.integers(0, 1))}
            inputs.append(constant(np.array([axis], np.int64)))
            new_rank = rank if attributes["keepdims"] else rank - 1
        elif op in ("Softmax", "Flatten"):
            attributes, new_rank = {"axis": axis}, 2 if op == "Flatten" else rank
        elif op == "Concat":
            inputs, attributes = [name, data.draw(st.sampled_from(values))[0]], {"axis": axis}
        elif op == "Slice":
            end = data.draw(st.sampled_from([1, -1, 1000]))
            inputs += [constant(np.array([v], np.int64)) for v in (0, end, axis)]
        elif op in ("MatMul", "Add"):
            other = data.draw(st.sampled_from(values))
            inputs, new_rank = [name, other[0]], max(rank, other[1])
        elif op in ("Unsqueeze", "Squeeze"):
            inputs.append(constant(np.array([axis], np.int64)))
            new_rank = rank + (1 if op == "Unsqueeze" else -1)
        elif op == "Gather":
            inputs.append(constant(np.array(0, np.int64)))
            attributes, new_rank = {"axis": axis}, rank - 1
        elif op == "CumSum":
            inputs.append(constant(np.array(axis, np.int64)))
        graph.node.append(helper.make_node(op, inputs, [made], **attributes))
        values.append((made, new_rank))
    graph.node.append(helper.make_node("Identity", [values[-1][0]], ["y"]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    ports = next(ports_of(model).guesses())
    try:
        kind = kind_of(model, ports)
    except (ExportError, ModelFileError):
        return  # shapes that do not fit, for one row at least
    if isinstance(kind, Rows) and kind.first:
        assert is_function_of_rows(model, ports)
