"""What the tests of the native operators share: files of one operator, sessions, rows in groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from augserve import native
from augserve.export.operators.functions import functions_of
from augserve.operators import DOMAIN

LIBRARY = native.find_library()
NEEDS_LIBRARY = pytest.mark.skipif(LIBRARY is None, reason="this augserve was installed without its native library")

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
    if norm == "AugNormLearned":
        values.append(helper.make_tensor_value_info("exponents", TensorProto.FLOAT, ["C"]))
    if ending.startswith("Add"):
        values.append(helper.make_tensor_value_info("residual", dtype, shape))
    y = helper.make_tensor_value_info("y", dtype, output_shape)
    node = helper.make_node(name, [value.name for value in values], ["y"], domain=DOMAIN, **chosen)
    model = helper.make_model(
        helper.make_graph([node], "one", values, [y]),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)],
        functions=functions_of([node]),
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
