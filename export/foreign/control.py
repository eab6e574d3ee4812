"""Control flow that decides nothing: an If whose condition is known is replaced by the branch that it takes.

Exporters write such nodes where they did not know a shape, as torch does for `squeeze`. An If that depends on the
rows, on their number or on an axis that the file leaves open stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, helper

from augserve.runtime.onnx_graph import following, hold, rename


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
        new: dict[str, str] = {name: f"{node.output[0]}/{name}" for name in own if name}
        rename(branch, following(new))
        graph.initializer.extend(branch.initializer)
        nodes += branch.node
        nodes += [
            helper.make_node("Identity", [value.name], [name])
            for value, name in zip(branch.output, node.output, strict=True)
            if name
        ]
    hold(graph.node, nodes)
    return found
