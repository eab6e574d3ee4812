"""Tracked statistics are an affine map of each channel: fold it into the layer before, or write it out.

    y = scale x + shift,    scale = gamma / divisor,    shift = beta - running_mean scale

After a convolution or a linear layer whose result nothing else uses, its weights take the map: W' = scale W,
b' = scale b + shift. Elsewhere it becomes a Mul and an Add. Computed in float64, stored in float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from augserve.errors import ExportError
from augserve.export.operators.filters import fold_into_filter
from augserve.operators import DOMAIN
from augserve.runtime.tracked_form import affine

Array = npt.NDArray[np.float64]


def lower_tracked(model: ir.Model) -> None:
    """Replace every norm node of the graph, in place, by standard operators."""
    graph = model.graph
    for node in list(graph):
        if node.domain == DOMAIN:
            scale, shift = _affine(node)
            folded = _fold_into_producer(graph, node, scale, shift) or fold_into_filter(graph, node, scale, shift)
            if not folded:
                _write_out(graph, node, scale, shift)
    unused = [name for name, value in graph.initializers.items() if not value.uses()]
    for name in unused:
        del graph.initializers[name]
    model.opset_imports.pop(DOMAIN, None)


def _affine(node: ir.Node) -> tuple[Array, Array]:
    parameters = [_constant(node, value) for value in node.inputs[1:5]]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return affine(node.op_type, parameters, attributes)


def _constant(node: ir.Node, value: ir.Value | None) -> Array:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    producer = None if value is None else value.producer()
    if value is not None and producer is not None and producer.op_type == "ConstantOfShape":
        # Ones or zeros in the place of a parameter that the layer does not have (affine=False).
        fill = producer.attributes.get_tensor("value")
        return np.full(value.shape.numpy() if value.shape else (), 0.0 if fill is None else fill.numpy().item())
    if tensor is None:
        raise ExportError(f"node {node.name!r}: a parameter of the norm is not a constant of the graph")
    return np.asarray(tensor.numpy(), dtype=np.float64)


def _fold_into_producer(graph: ir.Graph, norm: ir.Node, scale: Array, shift: Array) -> bool:
    """Give the map to the node that made the norm's input, where that node is linear and has no other use."""
    x = norm.inputs[0]
    producer = None if x is None else x.producer()
    if x is None or producer is None or len(x.uses()) != 1 or x.is_graph_output() or producer.domain:
        return False
    axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}.get(producer.op_type)
    if axis is None:
        return False
    if producer.op_type == "ConvTranspose" and producer.attributes.get_int("group", 1) != 1:
        return False
    if producer.op_type == "Gemm":
        plain = producer.attributes.get_float("alpha", 1.0) == 1 and producer.attributes.get_float("beta", 1.0) == 1
        if not plain or producer.attributes.get_int("transA", 0) != 0:
            return False
        axis = 0 if producer.attributes.get_int("transB", 0) else 1
    constants = [ir.convenience.get_const_tensor(v) for v in producer.inputs[1:3] if v is not None]
    if not constants or any(tensor is None for tensor in constants):
        return False
    weight, *rest = (np.asarray(tensor.numpy(), np.float64) for tensor in constants if tensor is not None)
    along = [1] * weight.ndim
    along[axis] = len(scale)
    bias = scale * rest[0] + shift if rest else shift
    stem = producer.outputs[0].name or producer.name
    folded = [
        producer.inputs[0],
        _initializer(graph, f"{stem}.folded_weight", weight * scale.reshape(along)),
        _initializer(graph, f"{stem}.folded_bias", bias),
    ]
    node = ir.Node("", producer.op_type, folded, producer.attributes.values(), name=producer.name, num_outputs=1)
    _replace(graph, norm, [node])
    graph.remove(producer, safe=True)
    return True


def _write_out(graph: ir.Graph, norm: ir.Node, scale: Array, shift: Array) -> None:
    x = norm.inputs[0]
    if x is None or x.shape is None:
        raise ExportError(f"node {norm.name!r}: the rank of its input is not known")
    shape = (1, -1, *(1,) * (len(x.shape) - 2))
    stem = norm.outputs[0].name or norm.name
    multiply = ir.Node("", "Mul", [x, _initializer(graph, f"{stem}.scale", scale.reshape(shape))])
    multiply.outputs[0].type, multiply.outputs[0].shape = x.type, x.shape
    add = ir.Node("", "Add", [multiply.outputs[0], _initializer(graph, f"{stem}.shift", shift.reshape(shape))])
    _replace(graph, norm, [multiply, add])


def _replace(graph: ir.Graph, norm: ir.Node, nodes: list[ir.Node]) -> None:
    """Put `nodes` in the place of `norm`; the last one's output takes over its name, type, shape and uses."""
    old, new = norm.outputs[0], nodes[-1].outputs[0]
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, norm, [norm], nodes, [old], [new])


def _initializer(graph: ir.Graph, name: str, values: Array) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(values, dtype=np.float32), name=name)
    value = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
