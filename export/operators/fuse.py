"""What follows a norm goes into its node: an addition, then a ReLU.

    y = relu(norm(x) + residual)    one node NAMEAddRelu instead of NAME, Add and Relu

A node of our own parts the runtime's own chains of operators; with the end of the block in it, its values are read
and written once. The functions of these nodes say the same in standard operators (see `body`).
"""

from __future__ import annotations

import onnx_ir as ir

from augserve.operators import DOMAIN


def fuse_endings(model: ir.Model) -> None:
    """Put additions and ReLUs into the norm nodes before them, in place, where nothing else uses their results."""
    graph = model.graph
    for node in list(graph):
        if node.domain == "" and node.op_type == "Add":
            _fuse_addition(graph, node)
    for node in list(graph):
        if node.domain == "" and node.op_type == "Relu":
            norm = _norm_before(node.inputs[0])
            if norm is not None:
                _replace(graph, norm, node, "Relu", ())


def _fuse_addition(graph: ir.Graph, add: ir.Node) -> None:
    """The later of two norms takes the other one's result as its residual."""
    order = {node: k for k, node in enumerate(graph)}
    norms = ((_norm_before(value), value) for value in add.inputs)
    found = [(order[norm], norm, value) for norm, value in norms if norm and not norm.op_type.endswith("Add")]
    if not found:
        return
    _, norm, value = max(found, key=lambda entry: entry[0])
    first, second = add.inputs
    residual = second if value is first else first
    if residual is None or residual is value or not _same_shape(norm.outputs[0], residual):
        return
    _replace(graph, norm, add, "Add", (residual,))


def _norm_before(value: ir.Value | None) -> ir.Node | None:
    """Return the norm whose result this is, if nothing but one node uses it and nothing is fused that ends it."""
    norm = None if value is None else value.producer()
    if value is None or norm is None or norm.domain != DOMAIN or norm.op_type.endswith("Relu"):
        return None
    return norm if len(value.uses()) == 1 and not value.is_graph_output() else None


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether both shapes are known and equal, the symbolic number of rows too: no broadcasting."""
    return a.shape is not None and b.shape is not None and list(a.shape) == list(b.shape) and a.dtype == b.dtype


def _replace(graph: ir.Graph, norm: ir.Node, last: ir.Node, suffix: str, more: tuple[ir.Value, ...]) -> None:
    """Put one node in the place of `last` that does what `norm` and `last` did."""
    inputs = [*norm.inputs, *more]
    fused = ir.Node(DOMAIN, norm.op_type + suffix, inputs, norm.attributes.values(), version=1, name=norm.name)
    old, new = last.outputs[0], fused.outputs[0]
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, last, [last], [fused], [old], [new])
    graph.remove(norm, safe=True)
