"""Running a network with several numbers of rows, to see how the shape of every value depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from augserve.errors import ExportError
from augserve.export.foreign.load import open_plain
from augserve.runtime.onnx_graph import subgraphs

ROWS = (1, 3, 5)  # a size that grows with the rows, and is nothing else by accident, shows in three numbers
Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]

# Inputs that say how an operator works, and on which axes: their values are looked at.
SETTINGS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        [
            f"Reduce{kind}"
            for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
        ],
        (1,),
    ),
    "CumSum": (1,),
    "If": (0,),
    "Pad": (1, 3),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
}
_NO_TENSORS = ("Optional", "Sequence", "SplitToSequence", "StringSplit")


@dataclass(frozen=True)
class Trace:
    """For each value its shape, and where it was looked at its content, at each number of rows."""

    shapes: dict[str, tuple[Shape, ...]]
    values: dict[str, tuple[Array, ...]]


def trace_rows(
    model: ModelProto, feed: Callable[[int], dict[str, Array]], has_rows: set[str], counts: Sequence[int] = ROWS
) -> Trace:
    """Run the model once for each number of rows.

    Args:
        model: without functions; only values outside of subgraphs are looked at.
        feed: values of the inputs for a number of rows.
        has_rows: the inputs that have rows.
        counts: the numbers of rows.

    Raises:
        ExportError: the model runs with some number of rows, but not with every one.
    """
    graph = model.graph
    made = [name for node in graph.node if _makes_tensors(node) for name in node.output if name]
    settings = _settings(graph)
    looked_at = settings | _of_shapes(graph, has_rows)
    wanted = [name for name in made if name in looked_at]
    instrumented = ModelProto()
    instrumented.CopyFrom(model)
    del instrumented.graph.output[:], instrumented.graph.value_info[:]
    for k, name in enumerate(made):
        instrumented.graph.node.append(helper.make_node("Shape", [name], [f"augserve.shape.{k}"]))
        instrumented.graph.output.append(
            helper.make_tensor_value_info(f"augserve.shape.{k}", TensorProto.INT64, None)
        )
    instrumented.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    runs: list[list[Array]] = []
    given: dict[str, list[Shape]] = {value.name: [] for value in graph.input}
    rows = 0
    session = open_plain(instrumented.SerializeToString(), optimized=False)
    try:
        for rows in counts:
            values = feed(rows)
            runs.append(session.run(None, values))
            for name, array in values.items():
                given[name].append(array.shape)
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        reason = str(error).strip().splitlines()[0][:300]
        raise ExportError(
            f"the network does not run with {rows} rows at a time ({reason}); export it again with a dynamic first "
            "axis"
        ) from None
    shapes = {name: tuple(tuple(int(d) for d in run[k]) for run in runs) for k, name in enumerate(made)}
    shapes |= {name: tuple(seen) for name, seen in given.items()}
    contents = {name: tuple(run[len(made) + k] for run in runs) for k, name in enumerate(wanted)}
    for tensor in graph.initializer:
        shapes[tensor.name] = (tuple(tensor.dims),) * len(counts)
        if tensor.name in settings:
            contents[tensor.name] = (numpy_helper.to_array(tensor),) * len(counts)
    return Trace(shapes, contents)


def inputs_of(node: NodeProto) -> list[str]:
    """Return what a node takes, also what its subgraphs take from outside."""
    names = [name for name in node.input if name]
    for graph in subgraphs(node):
        names += _taken(graph)
    return names


def values_of(node: NodeProto) -> list[str]:
    """Return those of a node's inputs whose values its result depends on."""
    return [node.input[0]] if node.op_type == "CastLike" else inputs_of(node)


def _taken(graph: GraphProto) -> Iterator[str]:
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    for node in graph.node:
        yield from (name for name in inputs_of(node) if name not in own)
    yield from (value.name for value in graph.output if value.name not in own)


def _makes_tensors(node: NodeProto) -> bool:
    return not node.op_type.startswith(_NO_TENSORS)


def _settings(graph: GraphProto) -> set[str]:
    return {node.input[k] for node in graph.node for k in SETTINGS.get(node.op_type, ()) if k < len(node.input)} - {
        ""
    }


def _of_shapes(graph: GraphProto, has_rows: set[str]) -> set[str]:
    """Return the values that depend on the shapes of rows, and not on the rows."""
    data, derived = set(has_rows), set[str]()
    for node in graph.node:
        taken = set(values_of(node))
        if node.op_type in ("Shape", "Size"):
            if taken & (data | derived):
                derived.update(node.output)
        elif taken & data:
            data.update(node.output)
        elif taken & derived:
            derived.update(node.output)
    return derived - {""}
