"""The solver in AugNorm's function: as exact on hard values as its tolerance says, beside bisection in float64."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import helper

from augserve.export.operators.body import function_body
from augserve.operators import OPERATORS
from tests import oracles
from tests.export.operators.native_operator_cases import SOLVER, Feed, one_node, run, session

ROWS, POSITIONS = 8, 60
CASES = ("normal", "relu", "student", "outlier", "clusters", "zeros", "integers", "far", "narrow", "wide", "flat")


def draw() -> npt.NDArray[np.float32]:
    """Values (N, C, L), a channel of each case."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((ROWS, POSITIONS))
    uniform = rng.uniform(size=normal.shape)
    outlier = normal.copy()
    outlier[0, 0] = 1e4
    channels = {
        "normal": normal,
        "relu": normal.clip(0),
        "student": normal / rng.chisquare(2, normal.shape) ** 0.5,
        "outlier": outlier,
        "clusters": np.where(uniform < 0.7, 0.0, 10.0) + 0.01 * normal,
        "zeros": np.where(uniform < 0.9, 0.0, normal),
        "integers": (2 * normal).round(),
        "far": 50 + normal,
        "narrow": 1e-3 * normal,
        "wide": 1e12 * normal,
        "flat": np.full_like(normal, 3.7),
    }
    return np.stack([channels[case] for case in CASES], axis=1).astype(np.float32)


def feed(x: npt.NDArray[np.float32]) -> Feed:
    zeros, ones = np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)
    parameters = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_spread": ones}
    return {
        "x": x,
        **parameters,
        "group": np.zeros(len(x), np.int64),
        "tracked_weight": np.zeros(len(x), np.float32),
    }


@pytest.mark.parametrize("phi", [1.02, 1.1, 1.25, 1.5, 1.8, 1.99, 2.5, 8.0])
def test_the_median_of_hard_values_is_within_the_tolerance(phi: float) -> None:
    x = draw()
    name = "AugNorm" if phi < 2 else "AugNormAbove2"
    model = one_node(name, ("N", "C", "L"), attributes={**SOLVER, "phi": phi, "eps": 1e-12})
    y = run(session(model, operators=False), feed(x)).astype(np.float64)
    for k, case in enumerate(CASES):
        values = x[:, k].astype(np.float64)
        center = oracles.generalized_median(values.ravel(), phi)
        spread = ((values - center) ** 2).mean() + 1e-12
        rounding = 1e-7 * (1 + abs(values).max() / spread**0.5)
        error = abs(y[:, k] - (values - center) / spread**0.5).max()
        assert error <= SOLVER["rtol"] + 4 * rounding, (case, error, rounding)


@pytest.mark.parametrize("phi", [1.1, 1.5, 1.8])
def test_a_pass_that_hits_a_value_goes_on(phi: float) -> None:
    """The first looks at a tenth of the tolerance past the mean, which is 0 here, and where a value is."""
    std = np.sqrt(np.float32(3.5))  # the two small values add nothing
    hit = np.float32(0.1) * (np.float32(SOLVER["rtol"]) * std)
    x = np.array([[[hit, 3, -1, -2, -hit, 3, -1, -2]]], np.float32)
    assert_solved(x, phi, var=3.5)


@pytest.mark.parametrize("phi", [1.5, 1.8])
def test_a_pass_that_hits_a_value_after_another_goes_on(phi: float) -> None:
    """A padding to the left of the first point is the mean, and the middle of the bracket."""
    hit = np.float32(0.1) * (np.float32(SOLVER["rtol"]) * np.sqrt(np.float32(1.75)))
    x = np.array([[[hit, 3, -1, -2, -hit / 2, 3, -1, -2, -hit / 2, *(0,) * 7]]], np.float32)
    assert_solved(x, phi, var=1.75)


def assert_solved(x: npt.NDArray[np.float32], phi: float, var: float) -> None:
    model = one_node("AugNorm", ("N", "C", "L"), attributes={**SOLVER, "phi": phi, "eps": 0.0})
    y = run(session(model, operators=False), feed(x))
    center = oracles.generalized_median(x.ravel().astype(np.float64), phi)
    assert center < -0.01
    np.testing.assert_allclose(y, (x - center) / (var + center**2) ** 0.5, atol=1.1 * SOLVER["rtol"])


@pytest.mark.parametrize("last_g", [-5.0, 5.0])
@pytest.mark.parametrize("root", [False, True])
def test_a_pass_that_hits_a_value_keeps_the_bracket(
    last_g: float, root: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("augserve.export.operators.body.compact", lambda function: function)  # names stay
    functions = function_body(OPERATORS["AugNorm"], root=root)
    blocks = next(node for node in functions.node if node.op_type == "Loop")
    solver = next(node for node in blocks.attribute[0].g.node if node.op_type == "Loop")
    one_pass = solver.attribute[0].g
    column = np.ones((1, 1, 1), np.float32)
    outer = {
        "z": np.array([[[-0.5, 0.25, 0.5, 0.9]]], np.float32),
        "group": np.zeros(1, np.int64),
        "index": np.zeros((1, 1, 1), np.int64),
        "rows_axis": np.array([0]),
        "two_1": np.array([2]),
        "zeros": 0 * column,
        "tiny": np.array(1e-30, np.float32),
        "p_less": np.array(-0.5, np.float32),
        "least": 2 * column,
        "tolerance": 1e-5 * column,
        "padding": 1e-6 * column,
    }
    state = {"at": 0.25, "lower": -0.75, "upper": 0.8, "estimate": 0.0, "room": 16.0, "move": 1.0, "last_g": last_g}
    known = {node for n in one_pass.node for node in n.output} | {given.name for given in one_pass.input}
    for name in sorted({name for n in one_pass.node for name in n.input if name} - known):
        kind = helper.np_dtype_to_tensor_dtype(outer[name].dtype)
        one_pass.input.append(helper.make_tensor_value_info(name, kind, outer[name].shape))
    model = helper.make_model(one_pass, opset_imports=functions.opset_import, ir_version=8)
    given = {given.name: outer[given.name] for given in one_pass.input if given.name in outer}
    given |= {name: np.float32(value) * column for name, value in state.items()}
    given |= {"taken": np.array(1), "going_on": np.array(True)}
    opened = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in one_pass.output]
    came = {name: values.item() for name, values in zip(names, opened.run(None, given), strict=True)}
    assert came["go_on"]
    assert came["new_lower"] == state["lower"]
    assert came["new_upper"] == np.float32(state["upper"])
    assert came["next_at"] == pytest.approx(state["at"] - 1e-6, abs=1e-7)
    assert all(map(math.isfinite, came.values()))
