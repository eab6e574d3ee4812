"""A function made small: its constants at the top, those that nothing uses left out, and short names.

Each node of a function is a node of the graph wherever the function is used, and its text is in every file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, product
from string import ascii_letters

import onnx

from augserve.runtime.onnx_graph import hold, names_read, nodes_in, rename_in_node, subgraphs


def compact(function: onnx.FunctionProto) -> onnx.FunctionProto:
    """Return a function of the same meaning; its inputs, outputs and attributes keep their names."""
    small = onnx.FunctionProto()
    small.CopyFrom(function)
    constants = list(_taken_out(small.node))
    used = {name for node in small.node for name in names_read(node)}
    nodes = [node for node in constants if node.output[0] in used] + list(small.node)
    kept = {"", *function.input, *function.output}
    names: dict[str, str] = {name: name for name in kept}
    fresh = ("".join(letters) for size in count(1) for letters in product(ascii_letters, repeat=size))
    fresh = (name for name in fresh if name not in kept)

    def short(name: str) -> str:
        if name not in names:
            names[name] = next(fresh)
        return names[name]

    for node in nodes:
        rename_in_node(node, short)
        for each in (node, *(inner for graph in subgraphs(node) for inner in nodes_in(graph))):
            each.name = ""
            for graph in subgraphs(each):
                graph.name = "g"
    hold(small.node, nodes)
    return small


def _taken_out(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Take the constants out of the nodes and of their subgraphs, in place, and return them."""
    constants = [node for node in nodes if node.op_type == "Constant"]
    yield from (onnx.NodeProto.FromString(node.SerializeToString()) for node in constants)
    for node in constants:
        nodes.remove(node)  # type: ignore[attr-defined]
    for node in nodes:
        for graph in subgraphs(node):
            yield from _taken_out(graph.node)
