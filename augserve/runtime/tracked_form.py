"""The tracked form of a file: the same network for rows with tracked statistics alone, without our nodes.

    y = scale x + shift,    scale = weight / divisor,    shift = bias - running_mean scale

Where lambda = 1 in every row, a norm is this map of each channel, written as a BatchNormalization node: behind a
convolution it goes into its weights when ONNX Runtime opens the graph. What a node of ours ends with, an addition
or a ReLU, is written out again for the runtime's own fusions.

On a CPU shortcuts without parameters become convolutions (`shortcuts`), in files of mode tracked, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from augserve.operators import DOMAIN, STEERING, divisor, parted
from augserve.runtime.onnx_graph import attributes_of, constants_of, drop_unread, hold, names_read, numbers_of
from augserve.runtime.shortcuts import convolve_shortcuts

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[np.float64]


def tracked_form(content: bytes, *, cpu: bool = True) -> bytes | None:
    """Return a file's graph for tracked rows.

    Args:
        content: of a file of mode adaptive, with the inputs input, group and tracked_weight, or of mode tracked.
        cpu: whether a CPU is to run it.

    Returns:
        An ONNX file with the other inputs alone and without metadata; None where the file has no such form: the
        groups reach the answer past our norms, a parameter of a norm is not a float32 constant, or the file is
        of mode tracked and its graph as good as any.

    Raises:
        ModelFileError: an operator of the domain that this augserve does not know.

    Example:
        >>> folded = tracked_form(Path("model.onnx").read_bytes())  # doctest: +SKIP
    """
    import onnx

    model = onnx.load_model_from_string(content)
    graph = model.graph
    constants = constants_of(graph)
    written: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain != DOMAIN:
            written.append(node)
            continue
        found = _affine(node, constants)
        if found is None:
            return None
        written += _written_out(node, *found, graph)
    folded = any(value.name in STEERING for value in graph.input)
    if any(name in STEERING for node in written for name in names_read(node)):
        return None
    hold(graph.node, written)
    hold(graph.input, [value for value in graph.input if value.name not in STEERING])
    hold(model.opset_import, [opset for opset in model.opset_import if opset.domain != DOMAIN])
    del model.functions[:], model.metadata_props[:]
    convolved = cpu and convolve_shortcuts(model)
    if not folded and not convolved:
        return None
    drop_unread(graph)
    return bytes(model.SerializeToString())


def _affine(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> tuple[Array, Array] | None:
    """Return scale and shift (C,), None where a parameter is not a float32 constant."""
    parameters = [numbers_of(constants, name) for name in node.input[1:5]]
    if any(values is None or values.dtype != np.float32 for values in parameters):
        return None
    return affine(node.op_type, [np.asarray(values, np.float64) for values in parameters], attributes_of(node))


def affine(op_type: str, parameters: Sequence[Array], attributes: Mapping[str, Any]) -> tuple[Array, Array]:
    """Return scale and shift (C,) of a norm with tracked statistics.

    Args:
        op_type: of its node.
        parameters: weight, bias, running mean and running spread, float64 (C,) each.
        attributes: of its node.

    Raises:
        ModelFileError: an unknown operator.
    """
    weight, bias, mean, spread = parameters
    scale = weight / divisor(spread, parted(op_type)[0].spread, attributes, root=np.sqrt, power=np.power)
    return scale, bias - mean * scale


def _written_out(node: onnx.NodeProto, scale: Array, shift: Array, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return standard nodes for one of ours."""
    from onnx import helper, numpy_helper

    x, y = node.input[0], node.output[0]

    def constant(name: str, values: Array) -> str:
        tensor = numpy_helper.from_array(values.astype(np.float32), f"{y}.tracked.{name}")
        graph.initializer.append(tensor)
        return str(tensor.name)

    _, adds, clips = parted(node.op_type)[1]
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
