"""Control flow that decides nothing: an If whose condition is known is replaced by the branch that it takes.

Exporters write such nodes where they did not know a shape, as torch does for `squeeze`. An If that depends on the
rows, on their number or on an axis that the file leaves open stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from augserve.export.foreign.load import subgraphs


def take_branches(model: ModelProto, conditions: Mapping[str, bool]) -> bool:
    """Replace, in place, every outer If whose condition is among `conditions`; return whether there was one."""
    graph = model.graph
    nodes: list[NodeProto] = []
    found = False
    for node in graph.node:
        if node.op_type != "If" or node.domain or node.input[0] not in conditions:
            nodes.append(node)
            continue
        found = True
        wanted = "then_branch" if conditions[node.input[0]] else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
        own = {tensor.name for tensor in branch.initializer} | {name for n in branch.node for name in n.output}
        rename(branch, {name: f"{node.output[0]}/{name}" for name in own if name})
        graph.initializer.extend(branch.initializer)
        nodes += branch.node
        nodes += [
            helper.make_node("Identity", [value.name], [name])
            for value, name in zip(branch.output, node.output, strict=True)
            if name
        ]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return found


def rename(graph: GraphProto, new: Mapping[str, str]) -> None:
    """Give values of a graph and of its subgraphs other names, in place."""
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in subgraphs(attribute):
                rename(inner, new)


def names_in(graph: GraphProto) -> set[str]:
    """Return every name in a graph and its subgraphs."""
    names = {tensor.name for tensor in graph.initializer} | {value.name for value in (*graph.input, *graph.output)}
    for node in graph.node:
        names.update((*node.input, *node.output))
        for attribute in node.attribute:
            for inner in subgraphs(attribute):
                names |= names_in(inner)
    return names


def drop_unused(graph: GraphProto) -> None:
    """Remove, in place, initializers that nothing takes."""
    used = {value.name for value in graph.output}
    for node in graph.node:
        used.update(node.input)
        for attribute in node.attribute:
            for inner in subgraphs(attribute):
                used |= names_in(inner)
    kept = [TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in used]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)
