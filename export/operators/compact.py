"""A function made small: its constants at the top, those that nothing uses left out, and short names.

Each node of a function is a node of the graph wherever the function is used, and its text is in every file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, product
from string import ascii_letters

import onnx


def compact(function: onnx.FunctionProto) -> onnx.FunctionProto:
    """Return a function of the same meaning; its inputs, outputs and attributes keep their names."""
    small = onnx.FunctionProto()
    small.CopyFrom(function)
    constants = list(_taken_out(small.node))
    used = {name for node in small.node for name in _used(node)}
    nodes = [node for node in constants if node.output[0] in used] + list(small.node)
    kept = {"", *function.input, *function.output}
    names = {name: name for name in kept}
    fresh = ("".join(letters) for size in count(1) for letters in product(ascii_letters, repeat=size))
    fresh = (name for name in fresh if name not in kept)
    for node in nodes:
        _rename(node, names, fresh)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del small.node[:]
    small.node.extend(copies)
    return small


def _taken_out(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Take the constants out of the nodes and of their subgraphs, in place, and return them."""
    constants = [node for node in nodes if node.op_type == "Constant"]
    yield from (onnx.NodeProto.FromString(node.SerializeToString()) for node in constants)
    for node in constants:
        nodes.remove(node)  # type: ignore[attr-defined]
    for node in nodes:
        for attribute in node.attribute:
            yield from _taken_out(attribute.g.node)


def _used(node: onnx.NodeProto) -> Iterator[str]:
    """Return the names that a node and its subgraphs read."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _used(inner)
        yield from (value.name for value in attribute.g.output)


def _rename(node: onnx.NodeProto, names: dict[str, str], fresh: Iterator[str]) -> None:
    def short(name: str) -> str:
        if name not in names:
            names[name] = next(fresh)
        return names[name]

    node.input[:] = [short(name) for name in node.input]
    for attribute in node.attribute:
        graph = attribute.g
        for value in graph.input:
            value.name = short(value.name)
        for inner in graph.node:
            _rename(inner, names, fresh)
        for value in graph.output:
            value.name = short(value.name)
        if graph.name:
            graph.name = "g"
    node.output[:] = [short(name) for name in node.output]
    node.name = ""
