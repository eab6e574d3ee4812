"""Shortcuts without parameters, written as convolutions: on a CPU ONNX Runtime then keeps its own layout.

    y[:, before + c, i, j] = x[:, c, s i, s j],    0 in all other channels

is how residual networks of CIFAR (He et al. 2016, option A) halve maps and add channels: slices and a padding. For
its convolutions ONNX Runtime lays out maps in blocks of channels, for every other node anew as they were; and it
fuses an addition and a ReLU into convolutions only. The same map is a convolution of 1 x 1 with stride s, whose
filters hold a single 1: it changes no value that is finite, and costs less than what surrounds a slice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from augserve.runtime.onnx_graph import attributes_of, constants_of, hold, numbers_of

if TYPE_CHECKING:
    import onnx

TO_THE_END = 2**31 - 1  # a slice that ends there or later ends with the map, whatever its size


class _Shortcut(NamedTuple):
    """Slices and the padding behind them: what they read, and how they map it."""

    source: str
    strides: tuple[int, int]
    before: int
    after: int


def convolve_shortcuts(model: onnx.ModelProto) -> bool:
    """Replace what subsamples a float32 map and adds channels of zeros by convolutions, in place.

    Args:
        model: an ONNX model; slices that nothing reads any more stay in it.

    Returns:
        Whether there was such a shortcut.

    Example:
        >>> convolve_shortcuts(onnx.load("resnet20.onnx"))  # doctest: +SKIP
        True
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    found = _find(graph)
    channels = _channels(model) if found else {}
    written: list[onnx.NodeProto] = []
    changed = False
    for node in graph.node:
        shortcut = found.get(node.output[0])
        width = channels.get(shortcut.source) if shortcut else None
        if shortcut is None or width is None:
            written.append(node)
            continue
        filters = np.zeros((shortcut.before + width + shortcut.after, width, 1, 1), np.float32)
        filters[shortcut.before + np.arange(width), np.arange(width)] = 1
        name = f"{node.output[0]}.filters"
        graph.initializer.append(numpy_helper.from_array(filters, name))
        written.append(
            helper.make_node(
                "Conv",
                [shortcut.source, name],
                list(node.output),
                name=node.name,
                kernel_shape=[1, 1],
                strides=list(shortcut.strides),
            )
        )
        changed = True
    hold(graph.node, written)
    return changed


def _find(graph: onnx.GraphProto) -> dict[str, _Shortcut]:
    """Return the shortcuts by the names of what they give."""
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return {}  # there slices and paddings may work on integers
    makers = {name: node for node in graph.node for name in node.output}
    constants = constants_of(graph)
    found = {}
    for node in graph.node:
        if node.op_type != "Pad" or node.domain:
            continue
        padded = _added_channels(node, constants)
        source, strides = node.input[0], [1, 1]
        while padded and (maker := makers.get(source)) is not None and maker.op_type == "Slice":
            steps = _steps(maker, constants)
            if steps is None:
                break
            source, strides = maker.input[0], [s * step for s, step in zip(strides, steps, strict=True)]
        if padded and source != node.input[0]:
            found[node.output[0]] = _Shortcut(source, (strides[0], strides[1]), *padded)
    return found


def _added_channels(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> tuple[int, int] | None:
    """Return how many channels of zeros a Pad adds, before and after; None where it does something else."""
    attributes = attributes_of(node)
    pads = _numbers(node, 1, constants)
    value = _numbers(node, 2, constants)
    if attributes.get("mode", b"constant") != b"constant" or pads is None or len(pads) != 8 or len(node.input) > 3:
        return None
    if value is None or any(value) or any(pads[k] for k in (0, 2, 3, 4, 6, 7)) or min(pads) < 0:
        return None
    return int(pads[1]), int(pads[5])


def _steps(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> tuple[int, int] | None:
    """Return the steps down and across of a Slice that takes every s-th value of whole maps; None for another."""
    starts, ends, axes, steps = (_numbers(node, k, constants) for k in range(1, 5))
    if starts is None or ends is None or axes is None or steps is None:
        return None
    if not len(starts) == len(ends) == len(axes) == len(steps):  # an input may be left out
        return None
    if any(starts) or any(end < TO_THE_END for end in ends) or any(step < 1 for step in steps):
        return None
    by_axis = {axis % 4: step for axis, step in zip(axes, steps, strict=True)}  # a padding told that there are four
    if not set(by_axis) <= {2, 3}:
        return None
    return int(by_axis.get(2, 1)), int(by_axis.get(3, 1))


def _numbers(node: onnx.NodeProto, index: int, constants: dict[str, onnx.TensorProto]) -> list[float] | None:
    """Return a constant input as a list, empty where it is left out; None where it is computed."""
    name = node.input[index] if len(node.input) > index else ""
    values = numbers_of(constants, name) if name else np.empty(0)
    return None if values is None else list(np.ravel(values).tolist())


def _channels(model: onnx.ModelProto) -> dict[str, int]:
    """Return the channels of the float32 maps whose shape can be told."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    channels = {}
    for value in (*inferred.input, *inferred.value_info):
        tensor = value.type.tensor_type
        if tensor.elem_type == onnx.TensorProto.FLOAT and len(tensor.shape.dim) == 4:
            channels[value.name] = int(tensor.shape.dim[1].dim_value)
    return {name: count for name, count in channels.items() if count}
