"""The tracked form of a file: the same network for rows with tracked statistics alone, without our nodes.

    y = scale x + shift,    scale = weight / divisor,    shift = bias - running_mean scale

Where lambda = 1 in every row, a norm is this map of each channel, written as a BatchNormalization node: behind a
convolution it goes into its weights when ONNX Runtime opens the graph. What a node of ours ends with, an addition
or a ReLU, is written out again for the runtime's own fusions.

On a CPU shortcuts without parameters become convolutions (`shortcuts`), in files of mode tracked, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from augserve.runtime.shortcuts import convolve_shortcuts

if TYPE_CHECKING:
    import onnx

DOMAIN = "augserve"
CHOICES = ("group", "tracked_weight")  # inputs of an adaptive graph that a tracked one does not have
ENDINGS = (("AddRelu", True, True), ("Add", True, False), ("Relu", False, True), ("", False, False))

Array = npt.NDArray[np.float64]


def tracked_form(content: bytes, *, cpu: bool = True) -> bytes | None:
    """Return a file's graph for tracked rows.

    Args:
        content: of a file of mode adaptive, with the inputs input, group and tracked_weight, or of mode tracked.
        cpu: whether a CPU is to run it.

    Returns:
        An ONNX file with the other inputs alone and without metadata; None where the file has no such form: the
        groups reach the answer past our norms, a parameter of a norm is not a float32 constant, the package
        onnx is not installed, or the file is of mode tracked and its graph as good as any.

    Example:
        >>> folded = tracked_form(Path("model.onnx").read_bytes())  # doctest: +SKIP
    """
    try:
        import onnx
    except ImportError:
        return None

    model = onnx.load_model_from_string(content)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    written: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain != DOMAIN:
            written.append(node)
            continue
        affine = _affine(node, constants)
        if affine is None:
            return None
        written += _written_out(node, *affine, graph)
    folded = any(value.name in CHOICES for value in graph.input)
    if any(name in CHOICES for node in written for name in _names_used(node)):
        return None
    kept = [value for value in graph.input if value.name not in CHOICES]
    del graph.node[:], graph.input[:], model.functions[:], model.metadata_props[:]
    graph.node.extend(written)
    graph.input.extend(kept)
    opsets = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    convolved = cpu and convolve_shortcuts(model)
    if not folded and not convolved:
        return None
    _drop_unread(graph)
    return bytes(model.SerializeToString())


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Leave out nodes and constants that nothing reads."""
    nodes, before = list(graph.node), -1
    while before != len(nodes):
        before = len(nodes)
        used = {name for node in nodes for name in _names_used(node)} | {value.name for value in graph.output}
        nodes = [node for node in nodes if used.intersection(node.output)]
    del graph.node[:]
    graph.node.extend(nodes)
    remaining = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(remaining)


def _affine(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> tuple[Array, Array] | None:
    """Return scale and shift (C,), None where a parameter is not a float32 constant."""
    from onnx import TensorProto, helper, numpy_helper

    tensors = [constants.get(name) for name in node.input[1:5]]
    if any(tensor is None or tensor.data_type != TensorProto.FLOAT for tensor in tensors):
        return None
    weight, bias, mean, spread = (numpy_helper.to_array(t).astype(np.float64) for t in tensors if t is not None)
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    kind, _, _ = _parted(node.op_type)
    if kind == "RobustNorm":
        divisor = spread + attributes["eps"]
    elif kind == "RobustRangeNorm":
        divisor = spread ** attributes["p"] + attributes["eps"]
    else:
        divisor = np.sqrt(spread + attributes["eps"])
    scale = weight / divisor
    return scale, bias - mean * scale


def _parted(op_type: str) -> tuple[str, bool, bool]:
    """Return the norm's name, and whether an addition and a ReLU follow it."""
    suffix, adds, clips = next(ending for ending in ENDINGS if op_type.endswith(ending[0]))
    return op_type.removesuffix(suffix), adds, clips


def _written_out(node: onnx.NodeProto, scale: Array, shift: Array, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return standard nodes for one of ours."""
    from onnx import helper, numpy_helper

    x, y = node.input[0], node.output[0]

    def constant(name: str, values: Array) -> str:
        tensor = numpy_helper.from_array(values.astype(np.float32), f"{y}.tracked.{name}")
        graph.initializer.append(tensor)
        return str(tensor.name)

    _, adds, clips = _parted(node.op_type)
    names = [f"{y}.tracked.{step}" for step in range(int(adds) + int(clips))] + [y]
    parameters = [
        constant("scale", scale),
        constant("shift", shift),
        constant("zeros", np.zeros_like(scale)),
        constant("ones", np.ones_like(scale)),
    ]
    nodes = [helper.make_node("BatchNormalization", [x, *parameters], [names[0]], epsilon=0.0)]
    if adds:
        nodes.append(helper.make_node("Add", [names[0], node.input[len(node.input) - 1]], [names[1]]))
    if clips:
        nodes.append(helper.make_node("Relu", [names[-2]], [y]))
    return nodes


def _names_used(node: onnx.NodeProto) -> list[str]:
    """Return the names that a node reads, those of its subgraphs included."""
    names = list(node.input)
    for attribute in node.attribute:
        for subgraph in (attribute.g, *attribute.graphs):
            names += [name for inner in subgraph.node for name in _names_used(inner)]
            names += [output.name for output in subgraph.output]
    return names
