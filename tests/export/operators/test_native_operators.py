"""One native operator in ONNX Runtime: the same as its function, and what it promises of groups and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from augserve.export.operators.body import BLOCK_VALUES
from augserve.norms import norm_layers
from tests.export.conftest import KINDS, small_network
from tests.export.operators.native_operator_cases import (
    ENDINGS,
    NEEDS_LIBRARY,
    OPERATORS,
    feed,
    one_node,
    run,
    session,
    some_rows,
)
from tests.tolerances import PARITY

pytestmark = NEEDS_LIBRARY


def test_every_norm_of_the_exporter_is_here() -> None:
    used = {layer.operator()[0] for kind in KINDS.values() for layer in norm_layers(small_network(kind)).values()}
    assert used == set(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("positions", [(), (9,), (7, 5), (2, 3, 4)])
def test_operator_answers_as_its_function(name: str, positions: tuple[int, ...]) -> None:
    model = one_node(name, ("N", "C", *(f"L{k}" for k in range(len(positions)))))
    operators, functions = session(model), session(model, operators=False)
    for rows in (1, 2, 7, 32) if positions else (32,):
        values = feed(rows, positions=positions)
        y = run(operators, values)
        assert y.shape == values["x"].shape
        np.testing.assert_allclose(y, run(functions, values), atol=PARITY, rtol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_functions_take_blocks_of_channels_the_last_of_them_smaller(name: str) -> None:
    values = feed(5, channels=7, positions=(BLOCK_VALUES // 11,))
    model = one_node(name, ("N", "C", "L"))
    functions = session(model, operators=False)
    np.testing.assert_allclose(run(functions, values), run(session(model), values), atol=PARITY, rtol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_functions_take_equal_values_and_isolate_groups_to_the_bit(name: str) -> None:
    values = feed(19, positions=(4, 5)) | {"tracked_weight": np.zeros(19, np.float32)}
    values["x"][:, 1], values["x"][:, 2] = 3.0, 0.0
    group = values["group"] == values["group"][0]
    functions = session(one_node(name), operators=False)
    y = run(functions, values)
    np.testing.assert_allclose(y, run(session(one_node(name)), values), atol=PARITY / 10, rtol=0)
    for others in (7 * values["x"] + 3, np.full_like(values["x"], np.nan)):
        x = np.where(group[:, None, None, None], values["x"], others)
        changed = run(functions, {**values, "x": x})
        np.testing.assert_array_equal(changed[group], y[group])


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("rows", [2, 129])
def test_functions_add_the_rows_of_the_only_group_as_those_of_several(name: str, rows: int) -> None:
    """In fours: ONNX Runtime sums a row that begins elsewhere in another order, and the rest one by one."""
    values = feed(rows + 1, channels=64, positions=(4, 4)) | {"tracked_weight": np.zeros(rows + 1, np.float32)}
    values["group"] = np.repeat([0, 1], [rows, 1])
    mine = values["group"] == 0
    functions = session(one_node(name), operators=False)
    np.testing.assert_array_equal(run(functions, values)[mine], run(functions, some_rows(values, mine)))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", ["AugNorm", "AugNormLearned", "RobustNorm"])
@pytest.mark.parametrize(
    "positions", [(4, 4), (9, 9), (70,), (40, 70)]
)  # short rows, long ones, rows of many blocks
def test_operator_with_what_follows_it(name: str, ending: str, positions: tuple[int, ...]) -> None:
    shape = ("N", "C", *(f"L{k}" for k in range(len(positions))))
    values = feed(11, positions=positions)
    residual, relu = ending.startswith("Add") * values["residual"], ending.endswith("Relu")
    for dtype, exact in ((TensorProto.FLOAT, 2e-6), (TensorProto.FLOAT16, 2e-3)):  # expected is rounded once more
        stored = helper.tensor_dtype_to_np_dtype(dtype)
        given = {**values, "x": values["x"].astype(stored), "residual": values["residual"].astype(stored)}
        opened = session(one_node(name + ending, shape, dtype=dtype))
        y = run(opened, given)
        assert y.dtype == stored
        expected = run(session(one_node(name, shape, dtype=dtype)), given).astype(np.float32) + residual
        expected = np.maximum(expected, 0) if relu else expected
        np.testing.assert_allclose(y.astype(np.float32), expected, atol=exact, rtol=exact / 2)
        if dtype == TensorProto.FLOAT:
            functions = session(one_node(name + ending, shape), operators=False)
            np.testing.assert_allclose(y, run(functions, given), atol=PARITY, rtol=0)
        group = given["group"] == given["group"][0]
        np.testing.assert_array_equal(y[group], run(opened, some_rows(given, group)))
        given["x"][0, 1, 0] = np.nan
        assert np.isnan(run(opened, given)[0, 1, 0]).all()  # a ReLU hides no NaN


@pytest.mark.parametrize("read_again", [False, True])
@pytest.mark.parametrize("ending", ["", *ENDINGS])
@pytest.mark.parametrize("name", ["AugNorm", "BatchNorm", "RobustNorm"])
def test_x_whose_memory_y_may_take(name: str, ending: str, read_again: bool) -> None:
    """x is made by a node and y read by one: y may take x's memory. Where x is read again, it is still there."""
    model = onnx.load_model_from_string(one_node(name + ending))
    nodes = model.graph.node
    nodes[0].input[0], nodes[0].output[0] = "between", "inner"
    nodes.insert(0, helper.make_node("Neg", ["x"], ["between"]))
    nodes.append(helper.make_node("Neg", ["inner"], ["y"]))
    if read_again:
        nodes.append(helper.make_node("Sub", ["between", "inner"], ["again"]))  # which runs after the norm
        model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, None))
    values = feed(32, positions=(16, 16))
    expected = run(session(one_node(name + ending)), {**values, "x": -values["x"]})
    opened = session(model.SerializeToString())
    for _ in range(3):
        y, *again = opened.run(None, {given.name: values[given.name] for given in opened.get_inputs()})
        np.testing.assert_array_equal(y, -expected)
        np.testing.assert_array_equal(again, [-values["x"] - expected] * read_again)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_group_is_to_the_bit_what_it_is_alone(name: str) -> None:
    opened = session(one_node(name))
    values = feed(19, channels=24, positions=(12, 13))  # enough for several threads
    together = run(opened, values)
    for g in np.unique(values["group"]):
        mine = values["group"] == g
        np.testing.assert_array_equal(together[mine], run(opened, some_rows(values, mine)))


@pytest.mark.parametrize("name", OPERATORS)
def test_threads_repetitions_and_runs_side_by_side_change_no_bit(name: str) -> None:
    model = one_node(name)
    values = feed(19, channels=24, positions=(12, 13))
    two = session(model)
    expected = run(session(model, threads=1), values)
    for _ in range(3):
        np.testing.assert_array_equal(run(two, values), expected)
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: run(two, values), range(8)):
            np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_group_and_channel(name: str, bad: float) -> None:
    opened = session(one_node(name))
    values = feed(23)
    row = int(np.flatnonzero(values["tracked_weight"] == 0)[0])
    before = run(opened, values)
    values["x"][row, 2, 3, 3] = bad
    after = run(opened, values)
    hit = np.zeros(before.shape, bool)
    hit[values["group"] == values["group"][row], 2] = True
    assert np.isnan(after[hit]).all()
    np.testing.assert_array_equal(after[~hit], before[~hit])


def test_tracked_rows_stand_alone_even_beside_nan_in_their_group() -> None:
    opened = session(one_node("AugNorm"))
    values = feed(6) | {"group": np.zeros(6, np.int64), "tracked_weight": np.ones(6, np.float32)}
    before = run(opened, values)
    values["x"][0] = np.nan
    np.testing.assert_array_equal(run(opened, values)[1:], before[1:])


def test_a_tracked_weight_above_1_is_1_as_in_the_function() -> None:
    opened = session(one_node("AugNorm"))
    values = feed(5) | {"group": np.zeros(5, np.int64), "tracked_weight": np.array([1, 2, 1, 3, 9], np.float32)}
    np.testing.assert_array_equal(
        run(opened, values), run(opened, values | {"tracked_weight": np.ones(5, np.float32)})
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_no_rows_and_no_positions(name: str) -> None:
    opened = session(one_node(name))
    assert run(opened, feed(0)).shape == (0, 5, 7, 5)
    assert run(opened, feed(3, positions=(0, 4))).shape == (3, 5, 0, 4)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_single_value_of_a_channel_becomes_the_bias(name: str) -> None:
    values = feed(4, positions=()) | {"group": np.arange(4), "tracked_weight": np.zeros(4, np.float32)}
    y = run(session(one_node(name, ("N", "C"))), values)
    np.testing.assert_array_equal(y, np.broadcast_to(values["bias"], y.shape))


@pytest.mark.parametrize("name", OPERATORS)
def test_float16(name: str) -> None:
    values = feed(13)
    half = {**values, "x": values["x"].astype(np.float16)}
    y = run(session(one_node(name, dtype=TensorProto.FLOAT16)), half)
    assert y.dtype == np.float16
    expected = run(session(one_node(name)), {**half, "x": half["x"].astype(np.float32)})
    np.testing.assert_allclose(y, expected, atol=1e-6, rtol=2**-11)  # computed in float32, then rounded


def test_shape_inference() -> None:
    def inferred(*shape: str | None) -> list[str | int | None]:
        found: list[str | int | None] = session(one_node("AugNorm", shape)).get_outputs()[0].shape
        return found

    assert inferred("N", "C", "H", "W") == ["N", "C", "H", "W"]
    assert inferred("N", "C") == ["N", "C"]
    values = feed(7)
    for shape in (None, (None, "C", None, None)):
        y = run(session(one_node("AugNorm", shape)), values)
        np.testing.assert_array_equal(y, run(session(one_node("AugNorm")), values))
