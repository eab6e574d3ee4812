"""The native library's operators in ONNX Runtime: the same file with them and without, and what they refuse."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from augserve import native
from augserve.export import export_onnx
from augserve.export.functions import functions_of
from augserve.norms import AugNorm2d, norm_layers, use_statistics
from augserve.norms.symbolic import DOMAIN, LEARNED
from augserve.statistics import Statistics
from tests.export.conftest import KINDS, small_network
from tests.tolerances import GROUP_ALONE, PARITY

LIBRARY = native.find_library()

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="this augserve was installed without its native library")

Feed = dict[str, npt.NDArray[np.generic]]

SOLVER = {"eps": 1e-5, "rtol": 1e-5, "max_steps": 32}
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "AugNorm": {"phi": 1.5, **SOLVER},
    "AugNormAbove2": {"phi": 3.0, **SOLVER},
    "BatchNorm": {"eps": 1e-5},
    "MedianNorm": {"eps": 1e-5},
    "MidrangeNorm": {"eps": 1e-5},
    "RobustNorm": {"p": 0.2, "eps": 1e-5},
    "RobustRangeNorm": {"p": 0.2, "eps": 1e-5},
    "AugNormLearned": SOLVER,
}
OPERATORS = tuple(ATTRIBUTES)
ENDINGS = ("Relu", "Add", "AddRelu")
INPUTS = ("x", "weight", "bias", "running_mean", "running_spread", "group", "tracked_weight")
MODES = [Statistics("batch"), Statistics("tracked"), Statistics("blend", tracked_weight=0.4), Statistics("batch")]


def session(
    model: bytes, *, operators: bool = True, threads: int = 2, optimized: Path | None = None
) -> ort.InferenceSession:
    """A plain session, with the operators or with their functions."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if operators:
        options.register_custom_ops_library(str(LIBRARY))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def one_node(
    name: str,
    shape: tuple[str | None, ...] | None = ("N", "C", "H", "W"),
    *,
    attributes: dict[str, Any] | None = None,
    dtype: int = TensorProto.FLOAT,
    output_shape: tuple[str | None, ...] | None = None,
) -> bytes:
    """The file of one operator alone."""
    ending = next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if name.endswith(ending)), "")
    norm = name.removesuffix(ending)
    chosen = ATTRIBUTES[norm] if attributes is None else attributes
    values = [helper.make_tensor_value_info("x", dtype, shape)]
    values += [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["C"]) for value in INPUTS[1:5]]
    values.append(helper.make_tensor_value_info("group", TensorProto.INT64, ["N"]))
    values.append(helper.make_tensor_value_info("tracked_weight", TensorProto.FLOAT, ["N"]))
    if norm == LEARNED:
        values.append(helper.make_tensor_value_info("exponents", TensorProto.FLOAT, ["C"]))
    if ending.startswith("Add"):
        values.append(helper.make_tensor_value_info("residual", dtype, shape))
    y = helper.make_tensor_value_info("y", dtype, output_shape)
    node = helper.make_node(name, [value.name for value in values], ["y"], domain=DOMAIN, **chosen)
    model = helper.make_model(
        helper.make_graph([node], "one", values, [y]),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)],
        functions=functions_of([name]),
        ir_version=10,
    )
    return bytes(model.SerializeToString())


def feed(rows: int, *, channels: int = 5, positions: tuple[int, ...] = (7, 5), seed: int = 0) -> Feed:
    """Rows of up to five groups, with ids that are neither sorted nor all there, tracked, batch and blend."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(max(rows, 1))[:5]
    group = rng.choice(names, rows)
    lambdas = np.zeros(max(rows, 1))
    lambdas[names] = [0, 1, 0.4, 0, 0.9][: len(names)]
    return {
        "x": (rng.standard_normal((rows, channels, *positions)) * 2 + 1).astype(np.float32),
        "weight": rng.uniform(0.5, 1.5, channels).astype(np.float32),
        "bias": rng.standard_normal(channels).astype(np.float32),
        "running_mean": rng.standard_normal(channels).astype(np.float32),
        "running_spread": rng.uniform(0.5, 2, channels).astype(np.float32),
        "group": group.astype(np.int64),
        "tracked_weight": lambdas[group].astype(np.float32),
        "exponents": rng.uniform(1.1, 3.0, channels).astype(np.float32),
        "residual": rng.standard_normal((rows, channels, *positions)).astype(np.float32),
    }


def run(opened: ort.InferenceSession, values: Feed) -> npt.NDArray[np.float32]:
    """Run with what the session takes of the values."""
    taken = {node.name: values[node.name] for node in opened.get_inputs()}
    y: npt.NDArray[np.float32] = opened.run(None, taken)[0]
    return y


def some_rows(values: Feed, chosen: npt.NDArray[np.bool_]) -> Feed:
    """Those rows alone, as one group."""
    rows = {name: values[name][chosen] for name in ("x", "tracked_weight", "residual") if name in values}
    return {**values, **rows, "group": np.zeros(chosen.sum(), np.int64)}


# --- exported networks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, bytes]:
    network = small_network(KINDS[request.param])
    path = tmp_path_factory.mktemp("operators") / "m.onnx"
    export_onnx(network, path, example=torch.randn(9, 3, 8, 8), mode="adaptive", native="off")
    return network, path.read_bytes()


def network_feed(rows: Tensor, n: int) -> Feed:
    """Rows in up to four groups of MODES."""
    group = np.random.default_rng(n).permutation(np.arange(n) % 4)
    weights = [MODES[g].weight(size) for g, size in enumerate(np.bincount(group))]
    return {"input": rows[:n].numpy(), "group": group, "tracked_weight": np.array(weights, np.float32)[group]}


def test_a_file_answers_as_its_functions_and_as_torch(exported: tuple[nn.Module, bytes], rows: Tensor) -> None:
    network, model = exported
    operators, functions = session(model), session(model, operators=False)
    for n in (1, 2, 7, 32):
        values = network_feed(rows, n)
        answer = run(operators, values)
        np.testing.assert_allclose(answer, run(functions, values), atol=PARITY, rtol=0)
        groups = int(values["group"].max()) + 1
        with torch.no_grad(), use_statistics(network, MODES[:groups], torch.from_numpy(values["group"])):
            np.testing.assert_allclose(answer, network(rows[:n]).numpy(), atol=PARITY, rtol=0)
        other_ids = {**values, "group": n - 1 - values["group"]}
        np.testing.assert_array_equal(run(operators, other_ids), answer)


def test_a_group_of_a_file_answers_as_if_alone(exported: tuple[nn.Module, bytes], rows: Tensor) -> None:
    operators = session(exported[1])
    values = network_feed(rows, 32)
    together = run(operators, values)
    for g in range(4):
        mine = values["group"] == g
        alone = {name: value[mine] for name, value in values.items()} | {"group": np.zeros(mine.sum(), np.int64)}
        # Within a tolerance: ONNX Runtime's own layers sum in another order for another number of rows.
        np.testing.assert_allclose(together[mine], run(operators, alone), atol=GROUP_ALONE)


def test_the_operators_are_used_where_they_are_registered(rows: Tensor, tmp_path: Path) -> None:
    export_onnx(small_network(AugNorm2d), tmp_path / "m.onnx", example=rows, native="off")
    model = (tmp_path / "m.onnx").read_bytes()
    kinds = {}
    for operators in (True, False):
        session(model, operators=operators, optimized=tmp_path / "optimized.onnx")
        kinds[operators] = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert sorted(kind for kind in kinds[True] if "Norm" in kind) == ["AugNorm", "AugNormAddRelu", "AugNormRelu"]
    assert "If" not in kinds[True]
    assert kinds[False].count("If") == 3  # statistics where a row wants them
    assert not any("Norm" in kind for kind in kinds[False])


def test_batch_file(rows: Tensor, tmp_path: Path) -> None:
    export_onnx(small_network(AugNorm2d), tmp_path / "m.onnx", example=rows, mode="batch", native="off")
    model = (tmp_path / "m.onnx").read_bytes()
    values: Feed = {"input": rows.numpy()}
    np.testing.assert_allclose(
        run(session(model), values), run(session(model, operators=False), values), atol=PARITY
    )


# --- one operator ----------------------------------------------------------------------------------------


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


def test_a_residual_of_another_shape_is_refused() -> None:
    values = feed(4)
    with pytest.raises(Exception, match="residual has another shape than x"):
        run(session(one_node("BatchNormAdd")), {**values, "residual": values["residual"][:, :, :1]})


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


# --- what is refused -------------------------------------------------------------------------------------


def refused(values: Feed, **changes: npt.ArrayLike) -> str:
    changed = {name: np.asarray(value, values[name].dtype) for name, value in changes.items()}
    opened = session(one_node("AugNorm"))
    with pytest.raises(Exception, match=r"augserve\.AugNorm: ") as caught:
        run(opened, {**values, **changed})
    np.testing.assert_array_equal(run(opened, values), run(opened, values))  # the session goes on
    return str(caught.value)


def test_impossible_groups_are_refused_by_row() -> None:
    values = feed(4) | {"group": np.zeros(4, np.int64), "tracked_weight": np.zeros(4, np.float32)}
    assert "group of row 2 is 4; expected an id from 0 to 3" in refused(values, group=[0, 1, 4, 0])
    assert "group of row 1 is -1; expected an id from 0 to 3" in refused(values, group=[0, -1, 0, 0])
    assert "group has 3 values; expected one dimension of 4" in refused(values, group=[0, 0, 0])
    text = "rows 0 and 2 of group 0 have tracked_weight 0 and 0.5; expected one for all rows of a group"
    assert text in refused(values, tracked_weight=[0, 0, 0.5, 0])
    assert "tracked_weight of row 0 is -0.5" in refused(values, tracked_weight=[-0.5] * 4)
    assert "tracked_weight of row 3 is nan" in refused(values, tracked_weight=[0, 0, 0, np.nan])
    assert "weight has 4 values; expected one dimension of 5" in refused(values, weight=[1] * 4)
    with pytest.raises(Exception, match=r"x has 1 dimensions; expected \(N, C, ...\)"):
        run(session(one_node("AugNorm", ("N",))), values | {"x": np.zeros(4, np.float32)})


def test_a_tracked_weight_above_1_is_1_as_in_the_function() -> None:
    opened = session(one_node("AugNorm"))
    values = feed(5) | {"group": np.zeros(5, np.int64), "tracked_weight": np.array([1, 2, 1, 3, 9], np.float32)}
    np.testing.assert_array_equal(
        run(opened, values), run(opened, values | {"tracked_weight": np.ones(5, np.float32)})
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_missing_attributes_are_refused_by_name(name: str) -> None:
    for missing in ATTRIBUTES[name]:
        rest = {key: value for key, value in ATTRIBUTES[name].items() if key != missing}
        with pytest.raises(Exception, match=rf"augserve\.{name}: the node has no attribute {missing}\b"):
            session(one_node(name, attributes=rest))


def test_attributes_out_of_range_are_refused_when_the_file_is_opened() -> None:
    with pytest.raises(Exception, match=r"augserve\.AugNorm: the exponent is out of range"):
        session(one_node("AugNorm", attributes={"phi": 0.5, **SOLVER}))
    with pytest.raises(Exception, match=r"augserve\.AugNorm: .*max_steps at least 1"):
        session(one_node("AugNorm", attributes={"phi": 1.5, **SOLVER, "max_steps": 0}))


# --- the process -----------------------------------------------------------------------------------------


def test_sessions_share_options_and_outlive_them() -> None:
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(LIBRARY))
    model = one_node("AugNorm")
    first, second = ort.InferenceSession(model, options), ort.InferenceSession(model, options)
    del options
    values = feed(7)
    expected = run(first, values)
    del first
    np.testing.assert_array_equal(run(second, values), expected)


def test_registration_leaves_denormals_alone_and_the_process_ends_well(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(one_node("AugNorm"))
    values: dict[str, Any] = feed(19, channels=24, positions=(12, 13))
    np.savez(tmp_path / "feed.npz", **values)
    script = """
import sys
import numpy as np
import onnxruntime as ort
folder, library = sys.argv[1:]
values = dict(np.load(folder + "/feed.npz"))
for _ in range(3):
    options = ort.SessionOptions()
    options.register_custom_ops_library(library)
    session = ort.InferenceSession(folder + "/m.onnx", options, providers=["CPUExecutionProvider"])
    session.run(None, {node.name: values[node.name] for node in session.get_inputs()})
single = np.float32("1e-40")  # the smallest normal one is 1.2e-38
print(np.float32(0.5) * single, (np.full(64, single) * np.float32(0.5)).min())
"""
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path), str(LIBRARY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    assert (done.returncode, done.stdout.split()) == (0, ["5e-41", "5e-41"]), done.stderr


def test_a_runtime_that_is_too_old_is_told() -> None:
    """A runtime without API version 17, whose version 1 has the first slot of the table alone."""
    told: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    def create_status(code: int, text: bytes) -> int:
        told.append(text)
        return code

    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p).value)

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    def get_api(version: int) -> int | None:
        return ctypes.addressof(table) if version == 1 else None

    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p).value, None)
    register = ctypes.CDLL(str(LIBRARY)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 1
    assert told == [b"augserve's operators need ONNX Runtime 1.17 or newer"]
