"""What has to be known of a foreign network before its norms can have groups: where its rows lie, and its sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from augserve.errors import ExportError, InputError
from augserve.export.foreign.control import take_branches
from augserve.export.foreign.inputs import Feed, Ports, free_rows
from augserve.export.foreign.load import NORM, refuse_hidden_norms, show
from augserve.export.foreign.original import Original
from augserve.export.foreign.rows.axis import Constant, Kind, Mixed, Rows, follow_rows
from augserve.export.foreign.rows.rules import RULES
from augserve.export.foreign.trace import Trace, trace_rows, values_of
from augserve.runtime.onnx_graph import drop_unread

EXAMPLE_ROWS = 7
FIX = (
    "statistics by group need the rows alone on the first axis there: export the network so, or take its norms out"
)


@dataclass(frozen=True)
class Analysed:
    """A network whose rows were followed.

    network: N dynamic in every input and output, under the name `symbol`.
    ports: its inputs, sizes filled in; `example` holds values for some rows of them.
    norms: the BatchNormalization nodes that can have groups, with the channels C and positions L of each.
    """

    network: ModelProto
    ports: Ports
    example: Feed
    symbol: str
    norms: dict[str, NodeProto]
    features: dict[str, int]
    positions: dict[str, int]


def analyse(
    network: ModelProto,
    original: Original,
    example: Mapping[str, npt.ArrayLike] | None,
    shapes: Mapping[str, Sequence[int]],
) -> Analysed:
    """Follow the rows of a cleaned network, which is changed in place.

    Raises:
        InputError: an example or shapes that the network does not take.
        ExportError: rows that cannot be told apart at a norm or an output, parameters that are no constants; by
            name.
    """
    open_sizes = any(size is None for port in original.ports.inputs for size in port.sizes)
    ports, rows = choose_sizes(original, example, shapes)
    _free_reshapes(network, ports)
    symbol = free_rows(network, ports)
    del network.graph.value_info[:]
    trace, kinds = follow(network, ports)
    while take_branches(network, _known_conditions(network, ports, trace, kinds, open_sizes)):
        trace, kinds = follow(network, ports)
    refuse_hidden_norms(network.graph)
    norms = _norms(network, kinds)
    _check_outputs(network, kinds)
    _describe_outputs(network, original, trace, symbol, open_sizes)
    drop_unread(network.graph)
    seen = {name: trace.shapes[node.input[0]][0] for name, node in norms.items()}
    return Analysed(
        network,
        ports,
        rows,
        symbol,
        norms,
        {name: shape[1] for name, shape in seen.items()},
        {name: int(np.prod(shape[2:])) for name, shape in seen.items()},
    )


def follow(network: ModelProto, ports: Ports) -> tuple[Trace, dict[str, Kind]]:
    """Run a network with several numbers of rows, and follow them; the sizes of its inputs are filled in."""
    trace = trace_rows(network, ports.random, {port.name for port in ports.inputs if port.has_rows})
    kinds: dict[str, Kind] = {tensor.name: Constant() for tensor in network.graph.initializer}
    kinds |= {tensor.values.name: Constant() for tensor in network.graph.sparse_initializer}
    kinds |= {port.name: Rows(0) if port.has_rows else Constant() for port in ports.inputs}
    return trace, follow_rows(network.graph.node, trace, kinds, RULES)


def _known_conditions(
    network: ModelProto, ports: Ports, trace: Trace, kinds: Mapping[str, Kind], open_sizes: bool
) -> dict[str, bool]:
    """Return the conditions of If nodes that are the same for any input."""
    unknown = _fed(network, {port.name for port in ports.inputs if open_sizes or not port.has_rows})
    names = {node.input[0] for node in network.graph.node if node.op_type == "If" and not node.domain}
    known = {name for name in names - unknown if isinstance(kinds[name], Constant) and name in trace.values}
    return {name: bool(trace.values[name][0].reshape(-1)[0]) for name in known}


def choose_sizes(
    original: Original, example: Mapping[str, npt.ArrayLike] | None, shapes: Mapping[str, Sequence[int]]
) -> tuple[Ports, Feed]:
    """Return the inputs with every size filled in, and values for some rows: those given, or random ones.

    Raises:
        InputError: an example or shapes that the network does not take.
        ExportError: no size that was tried runs.
    """
    ports = original.ports.with_shapes(shapes)
    if example is not None:
        feed = ports.check(example)
        reason = _failure(original, feed)
        if reason is not None and reason != NOT_FINITE:
            raise InputError(f"the network does not take the example values: {reason}")
        return ports.of_sizes(feed), feed
    reason, second = None, None
    for guess in ports.guesses():
        reason = _failure(original, guess.random(2))
        if reason is None:
            return guess, guess.random(EXAMPLE_ROWS, seed=1)
        if reason == NOT_FINITE:
            second = second or guess
    if second is not None:
        return second, second.random(EXAMPLE_ROWS, seed=1)
    raise ExportError(
        f"the network runs with none of the sizes that were tried for its open axes ({reason}); give the shape of "
        "a row of each input, or example values"
    )


NOT_FINITE = "answers with NaN or inf"


def _failure(original: Original, feed: Feed) -> str | None:
    try:
        answer = original.run(feed)
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        return " ".join(str(error).split())[:300]
    if not all(isinstance(output, np.ndarray) for output in answer):
        raise ExportError("an output of the network is no tensor, so it has no rows")
    finite = all(np.isfinite(output).all() for output in answer if output.dtype.kind == "f")
    return None if finite else NOT_FINITE


def _norms(network: ModelProto, kinds: Mapping[str, Kind]) -> dict[str, NodeProto]:
    """Return the norms of rows, by what they make."""
    fed = _fed(network, {value.name for value in network.graph.input})
    norms = {}
    for node in network.graph.node:
        if node.op_type != NORM or node.domain:
            continue
        kind = kinds[node.input[0]]
        if isinstance(kind, Constant):
            continue  # it normalizes weights
        if not isinstance(kind, Rows):
            reason = kind.reason if isinstance(kind, Mixed) else "its input holds no rows"
            raise ExportError(f"{show(node)} cannot have groups: {reason}; {FIX}")
        if not kind.first:
            raise ExportError(
                f"{show(node)} cannot have groups: its rows are merged with other values, or moved to axis "
                f"{kind.axis}, by {kind.moved_by}; {FIX}"
            )
        moving = next((name for name in node.input[1:5] if name in fed), None)
        if moving is not None:
            raise ExportError(
                f"{show(node)} takes its parameter {moving!r} from an input of the network, not from a constant; "
                "export the network with its parameters inside"
            )
        norms[node.output[0]] = node
    if not norms:
        raise ExportError("no BatchNormalization node normalizes rows of an input: there is nothing to convert")
    return norms


def _fed(network: ModelProto, inputs: set[str]) -> set[str]:
    """Return the values that depend on these inputs, or on their shapes."""
    fed = set(inputs)
    for node in network.graph.node:
        if fed.intersection(values_of(node)):
            fed.update(node.output)
    return fed


def _check_outputs(network: ModelProto, kinds: Mapping[str, Kind]) -> None:
    for value in network.graph.output:
        kind = kinds[value.name]
        if isinstance(kind, Rows) and kind.first:
            continue
        if isinstance(kind, Mixed):
            reason = kind.reason
        elif isinstance(kind, Rows):
            reason = f"its rows are merged with other values, or moved to axis {kind.axis}, by {kind.moved_by}"
        else:
            reason = "it is the same for any rows"
        raise ExportError(
            f"the output {value.name!r} has not one row for each row of the input: {reason}; take it out of the "
            "file's outputs (onnx.utils.extract_model)"
        )


def _free_reshapes(network: ModelProto, ports: Ports) -> None:
    """Let Reshape nodes copy the number of rows (0) where they state it; for the file's number that is the same."""
    fixed = ports.fixed_rows
    if fixed is None:
        return
    trace = trace_rows(network, ports.random, {p.name for p in ports.inputs if p.has_rows}, (fixed,))
    graph = network.graph
    known = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.INT64
    }
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name in ("value", "value_ints"):
            value = helper.get_attribute_value(node.attribute[0])
            known[node.output[0]] = (
                numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
            )
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in known:
            continue
        shape = known[node.input[1]].reshape(-1)
        before = trace.shapes.get(node.input[0])
        zeros = any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute)
        if before and before[0][:1] == (fixed,) and shape[:1].tolist() == [fixed] and not zeros:
            name = f"{node.output[0]}.shape_of_rows"
            graph.initializer.append(numpy_helper.from_array(np.array([0, *shape[1:]], np.int64), name))
            node.input[1] = name


def _describe_outputs(network: ModelProto, original: Original, trace: Trace, symbol: str, open_sizes: bool) -> None:
    """Say of every output its type and its rank, N first, and of every other axis what is known."""
    types = original.types
    for value in network.graph.output:
        shape = trace.shapes[value.name][0]
        declared = value.type.tensor_type.shape.dim
        sizes: list[int | str | None] = [symbol]
        for axis in range(1, len(shape)):
            dim = declared[axis] if len(declared) == len(shape) else None
            if not open_sizes:
                sizes.append(shape[axis])
            elif dim is not None and dim.dim_value > 0:
                sizes.append(dim.dim_value)
            else:
                named = dim is not None and dim.dim_param not in ("", "?", symbol)
                sizes.append(dim.dim_param if dim is not None and named else None)
        value.CopyFrom(helper.make_tensor_value_info(value.name, types[value.name], sizes))
