"""Graphs of ONNX as messages of Protocol Buffers: what a node reads and holds, new names, new entries.

One representation, for the runtime and the exporter alike; where a graph is searched for patterns, the exporter has
it as onnx_ir. onnx is imported where a function needs it: who opens no file waits for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes_in(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph, each before those that it holds."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes_in(inner)


def tensors_in(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield every tensor of a graph, also those in attributes and in the graphs that its nodes hold."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
        for inner in subgraphs(node):
            yield from tensors_in(inner)


def names_read(node: NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those within the graphs that it holds included."""
    yield from node.input
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from names_read(inner)
        yield from (value.name for value in graph.output)


def names_in(graph: GraphProto) -> set[str]:
    """Return every name of a value in a graph and the graphs that its nodes hold."""
    names = {tensor.name for tensor in graph.initializer} | {value.name for value in (*graph.input, *graph.output)}
    for node in graph.node:
        names.update((*node.input, *node.output))
        for inner in subgraphs(node):
            names |= names_in(inner)
    return names


def rename(graph: GraphProto, new: Callable[[str], str]) -> None:
    """Give the values of a graph other names, in place, also within the graphs that its nodes hold."""
    for value in (*graph.initializer, *graph.input):
        value.name = new(value.name)
    for node in graph.node:
        rename_in_node(node, new)
    for value in (*graph.output, *graph.value_info):
        value.name = new(value.name)


def rename_in_node(node: NodeProto, new: Callable[[str], str]) -> None:
    """Give the values that a node takes, holds and makes other names, in place; asked for in that order."""
    node.input[:] = [new(name) for name in node.input]
    for graph in subgraphs(node):
        rename(graph, new)
    node.output[:] = [new(name) for name in node.output]


def following(new: Mapping[str, str]) -> Callable[[str], str]:
    """Return the function that gives names their new ones, and leaves the others."""
    return lambda name: new.get(name, name)


def hold(field: Any, entries: Iterable[Any]) -> None:
    """Make a repeated field hold these messages, which may be some of its own."""
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    del field[:]
    field.extend(copies)


def drop_unread(graph: GraphProto) -> None:
    """Leave out, in place, nodes and initializers that nothing reads."""
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(names_read(node))
    hold(graph.node, reversed(kept))
    hold(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in wanted])


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name, as Python's values and messages."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def constants_of(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the initializers of a graph by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def numbers_of(constants: Mapping[str, TensorProto], name: str) -> npt.NDArray[np.generic] | None:
    """Return the values of a constant; None where the name is none."""
    from onnx import numpy_helper

    tensor = constants.get(name)
    return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))
