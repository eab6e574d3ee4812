"""Shortcuts as convolutions: the same values to the bit, and everything else in a graph left alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from augserve.runtime.shortcuts import TO_THE_END, convolve_shortcuts

Array = npt.NDArray[np.float32]
END = 2**63 - 1


def graph(
    body: str, constants: Mapping[str, object] = MappingProxyType({}), source: str = "float[N,3,H,W]"
) -> onnx.ModelProto:
    """A model of one input, x, and one output, y, with constants that differ from these."""
    values: dict[str, object] = {
        "zero": [0],
        "end": [END],
        "down": [2],
        "across": [3],
        "two": [2],
        "pads": [0, 1, 0, 0, 0, 4, 0, 0],
        **constants,
    }
    out = source.replace("3", "M").replace("H", "I").replace("W", "J")
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g ({source} x) => ({out} y) {{ {body} }}'
    )
    for name, value in values.items():
        array = np.asarray(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


HALVED = "a = Slice(x, zero, end, down, two) b = Slice(a, zero, end, across, two) "
BOTH = "b = Slice(x, zeros, ends, axes, twos) "
TOGETHER = {"zeros": [0, 0], "ends": [END, TO_THE_END], "axes": [2, 3], "twos": [2, 3]}


def run(model: onnx.ModelProto, x: npt.NDArray[np.generic]) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answer: Array = session.run(None, {"x": x})[0]
    return answer


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def rows(size: tuple[int, int], dtype: str = "float32") -> npt.NDArray[np.generic]:
    return np.random.default_rng(0).normal(size=(2, 3, *size)).astype(dtype)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 2)])
@pytest.mark.parametrize(
    ("body", "constants", "steps"),
    [
        (HALVED + "y = Pad(b, pads)", {}, (2, 2)),
        (HALVED + 'y = Pad<mode="constant">(b, pads, naught)', {"naught": np.float32(0)}, (2, 2)),
        ("a = Slice(x, zero, end, down, two) y = Pad(a, pads)", {"two": [3]}, (3, 1)),
        (HALVED + "y = Pad(b, pads)", {"down": [-2], "across": [-1]}, (2, 2)),
        (BOTH + "y = Pad(b, pads)", TOGETHER, (2, 3)),
        (HALVED + "y = Pad(b, pads)", {"pads": [0] * 8}, (2, 2)),
    ],
)
def test_a_shortcut_is_a_convolution_with_the_same_bits(
    body: str, constants: dict[str, object], steps: tuple[int, int], size: tuple[int, int]
) -> None:
    model = graph(body, constants)
    x = rows(size)
    before = run(model, x)
    assert convolve_shortcuts(model)
    onnx.checker.check_model(model, full_check=True)
    assert "Conv" in kinds(model)
    assert "Pad" not in kinds(model)
    added = constants.get("pads", [0, 1, 0, 0, 0, 4, 0, 0])
    assert isinstance(added, list)
    expected = np.pad(x[:, :, :: steps[0], :: steps[1]], [(0, 0), (added[1], added[5]), (0, 0), (0, 0)])
    after = run(model, x)
    assert after.shape == expected.shape
    assert np.array_equal(after, expected)
    assert np.array_equal(after, before)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (HALVED + "y = Identity(b)", {}),  # no padding
        ("y = Pad(x, pads)", {}),  # no slice
        (HALVED + "y = Pad(b, pads)", {"end": [4]}),  # a part of the map
        (HALVED + "y = Pad(b, pads)", {"zero": [1]}),
        (HALVED + "y = Pad(b, pads)", {"down": [1], "across": [0]}),  # every second channel or row of the batch
        (HALVED + "y = Pad(b, pads)", {"pads": [0, 1, 1, 0, 0, 4, 0, 0]}),  # rows of zeros
        (HALVED + "y = Pad(b, pads)", {"pads": [0, -1, 0, 0, 0, 4, 0, 0]}),  # takes a channel away
        (HALVED + "y = Pad(b, pads, one)", {"one": np.float32(1)}),
        (HALVED + 'y = Pad<mode="edge">(b, pads)', {}),
        (HALVED + "y = Pad(b, pads2, naught, axes)", {"pads2": [1, 4], "axes": [1], "naught": np.float32(0)}),
        (HALVED + "c = Identity(pads) y = Pad(b, c)", {}),  # computed, as far as one sees
        (HALVED + "q = QuantizeLinear(b, scale) y = Pad(b, pads)", {"scale": np.float32(1)}),
    ],
)
def test_another_graph_stays_as_it_is(body: str, constants: dict[str, object]) -> None:
    model = graph(body, constants)
    before = model.SerializeToString(deterministic=True)
    assert not convolve_shortcuts(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("source", ["double[N,3,H,W]", "float16[N,3,H,W]", "float[N,C,H,W]"])
def test_only_float32_maps_of_known_channels(source: str) -> None:
    model = graph(HALVED + "y = Pad(b, pads)", source=source)
    assert not convolve_shortcuts(model)
    assert "Conv" not in kinds(model)


def test_what_else_reads_a_slice_still_reads_it() -> None:
    model = graph(HALVED + "c = Pad(b, pads) m = ReduceMax<keepdims=1>(b) y = Add(c, m)")
    x = rows((6, 6))
    before = run(model, x)
    assert convolve_shortcuts(model)
    assert np.array_equal(run(model, x), before)
