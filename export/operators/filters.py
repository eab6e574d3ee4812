"""Filters on a torus in standard operators: ConvNorm2d's CircularFilter by real Fourier matrices.

    y = R_h' (v_e * Z + v_o * swap(Z)) R_w + shift,    Z = R_h x R_w'

R is the orthonormal real Fourier basis of a length L: a cosine and a sine of each frequency. A filter with a real,
symmetric spectrum takes a product of two such functions, one along rows and one along columns, to itself and to
the product in which cosines and sines have changed places:

    v_e(f, g) = (v(f, g) + v(-f, g)) / 2
    v_o(f, g) = (v(f, g) - v(-f, g)) / 2, negative for cos cos and sin sin

Those are four products with real matrices of L x L; complex ones take six. Rows of R_h' and columns of R_w that the
output does not take are left out.

The file holds one basis for each length, and of each spectrum v_e and v_o for f, g >= 0: together as much as v.
What nodes with constant inputs make of them, runtimes compute when they load the file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from augserve.errors import ExportError
from augserve.export.tracing.conv_norm import DOMAIN, FILTER, OUTSIDE

Array = npt.NDArray[np.float64]

SIGNS = [[-1.0], [1.0], [1.0], [-1.0]]  # of v_o at cos cos, cos sin, sin cos, sin sin


def lower_filters(model: ir.Model) -> None:
    """Replace every CircularFilter of the graph, in place, by standard operators."""
    graph = model.graph
    filters = [node for node in graph if is_filter(node)]
    known: dict[object, ir.Value] = {}
    for node in filters:
        _lower(_Builder(graph, node, known))
    for name, value in list(graph.initializers.items()) if filters else ():
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    model.opset_imports.pop(DOMAIN, None)


def is_filter(node: ir.Node) -> bool:
    """Return whether this is a CircularFilter."""
    return (node.domain, node.op_type) == (DOMAIN, FILTER)


def fold_into_filter(graph: ir.Graph, norm: ir.Node, scale: Array, shift: Array) -> bool:
    """Give a norm's affine map, scale y + shift, to the filter that made its input, if nothing else uses that.

    A filter has the inputs x, v, shift and scale then.
    """
    x = norm.inputs[0]
    node = None if x is None else x.producer()
    if x is None or node is None or not is_filter(node) or len(x.uses()) != 1 or x.is_graph_output():
        return False
    given = [values_of(value) for value in node.inputs[2:]]
    before = given[0] if given else np.zeros_like(shift)
    factor = given[1] if len(given) > 1 else np.ones_like(scale)
    build = _Builder(graph, norm, {})
    name = norm.outputs[0].name
    inputs = [
        *node.inputs[:2],
        build.initializer(f"{name}.shift", scale * before + shift),
        build.initializer(f"{name}.scale", scale * factor),
    ]
    folded = ir.Node(DOMAIN, FILTER, inputs, node.attributes.values(), version=1, num_outputs=1)
    build.replace_by(folded.outputs[0], [folded])
    graph.remove(node, safe=True)
    return True


def values_of(value: ir.Value | None) -> Array:
    """Return a constant of the graph in float64."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        name = "nothing" if value is None else repr(value.name)
        raise ExportError(f"a filter's spectrum, shift and scale have to be constants of the graph; got {name}")
    return np.asarray(tensor.numpy(), dtype=np.float64)


def basis(length: int) -> Array:
    """Return R (2P, L), P = (L + 1) // 2: cosine and sine of each frequency in turn.

    The first sine, which is zero, gives its place to the highest frequency's cosine where L is even.
    """
    angle = np.outer(np.arange((length + 1) // 2), np.arange(length)) % length * (2 * np.pi / length)
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.sqrt(2 / length)
    waves[0, 0] = 1 / np.sqrt(length)
    if length % 2 == 0:
        waves[0, 1] = np.cos(np.pi * np.arange(length)) / np.sqrt(length)
    matrix: Array = waves.reshape(-1, length)
    return matrix


def frequencies(length: int) -> npt.NDArray[np.int64]:
    """Return the frequency of every row of the basis, (P, 2)."""
    pairs = np.arange((length + 1) // 2).repeat(2).reshape(-1, 2)
    pairs[0, 1] = length // 2 if length % 2 == 0 else 0
    return pairs


class _Builder:
    """Nodes in front of one node of the graph; those with constant inputs are made once and shared."""

    def __init__(self, graph: ir.Graph, node: ir.Node, known: dict[object, ir.Value]) -> None:
        self.graph, self.node, self.known = graph, node, known

    def initializer(self, name: str, values: npt.ArrayLike) -> ir.Value:
        """Return a tensor of the graph: float32, or int64 if the values are whole numbers by type."""
        array = np.asarray(values)
        array = np.ascontiguousarray(array, np.int64 if array.dtype.kind == "i" else np.float32)
        key = (array.shape, array.dtype.kind, array.tobytes())
        if key not in self.known:
            while name in self.graph.initializers:
                name += "'"
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
            value.const_value = tensor
            self.graph.register_initializer(value)
            self.known[key] = value
        return self.known[key]

    def __call__(self, op_type: str, *inputs: ir.Value, **attributes: int | Sequence[int]) -> ir.Value:
        """Return what an operator makes of its inputs."""
        node = ir.node(op_type, inputs, attributes)
        self.graph.insert_before(self.node, node)
        node.name = ""  # given when it was inserted; the file is smaller without
        return node.outputs[0]

    def constant(self, op_type: str, *inputs: ir.Value, **attributes: int | Sequence[int]) -> ir.Value:
        """Return what an operator makes of constants."""
        key = (op_type, *(id(value) for value in inputs), *sorted((k, str(v)) for k, v in attributes.items()))
        if key not in self.known:
            self.known[key] = self(op_type, *inputs, **attributes)
        return self.known[key]

    def replace_by(self, new: ir.Value, nodes: Sequence[ir.Node] = ()) -> None:
        """Put `new` in the place of the node's output: its name, type, shape and uses."""
        old = self.node.outputs[0]
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(self.graph, self.node, [self.node], nodes, [old], [new])


def _lower(build: _Builder) -> None:
    x, v, *rest = build.node.inputs
    attributes = build.node.attributes
    spectrum, name = values_of(v), attributes["layer"].as_string()
    lengths = attributes["size"].as_ints()
    taken = [list(attributes[axis].as_ints()) for axis in ("rows", "columns")]
    # Along an axis on which v is flat, a row or a column passes as it is.
    rows, columns = ((spectrum != spectrum.take([0], axis)).any() for axis in (1, 2))
    if x is None or spectrum.shape[1:] != (lengths[0], lengths[1] // 2 + 1):
        raise ExportError(f"the spectrum of {name!r} has the shape {spectrum.shape}, not that of {lengths}")
    scale = build.initializer(f"{name}.scale", values_of(rest[1]).reshape(-1, 1, 1)) if len(rest) > 1 else None
    if columns:
        x = build("MatMul", x, _transform(build, lengths[1], None, columns=True))
    if rows:
        x = build("MatMul", _transform(build, lengths[0], None, columns=False), x)
    x = _multiply(build, x, spectrum, (lengths[0] if rows else 0, lengths[1] if columns else 0), name, scale)
    if columns or taken[1] != list(range(lengths[1])):
        back = _transform if columns else _selection
        x = build("MatMul", x, back(build, lengths[1], taken[1], columns=True))
    if rows or taken[0] != list(range(lengths[0])):
        back = _transform if rows else _selection
        x = build("MatMul", back(build, lengths[0], taken[0], columns=False), x)
    if rest:
        x = build("Add", x, build.initializer(f"{name}.shift", values_of(rest[0]).reshape(-1, 1, 1)))
    build.replace_by(x)


def _transform(build: _Builder, length: int, taken: list[int] | None, *, columns: bool) -> ir.Value:
    """Return the basis as a factor: to frequencies, or back to the positions that are taken.

    Columns of the image are multiplied from the right, and hold all cosines first.
    """
    waves = basis(length)
    order = np.arange(len(waves)).reshape(-1, 2).T.ravel()
    if taken is not None and OUTSIDE in taken:  # a zero is no position of the basis
        values = _at(waves[order] if columns else waves, taken)
        return build.initializer(f"fourier_{length}.taken", values if columns else values.T)
    value = build.initializer(f"fourier_{length}", waves)
    if columns:
        value = build.constant("Gather", value, build.initializer("cosines_first", order), axis=0)
    if taken is not None and taken != list(range(length)):
        value = build.constant("Gather", value, build.initializer("taken", taken), axis=1)
    if columns == (taken is None):
        value = build.constant("Transpose", value, perm=(1, 0))
    return value


def _selection(build: _Builder, length: int, taken: list[int], *, columns: bool) -> ir.Value:
    values = _at(np.eye(length), taken)
    return build.initializer(f"positions_{length}", values if columns else values.T)


def _at(matrix: Array, taken: list[int]) -> Array:
    values: Array = np.where(np.array(taken) == OUTSIDE, 0.0, matrix[:, taken])
    return values


def _multiply(
    build: _Builder, z: ir.Value, v: Array, lengths: tuple[int, int], name: str, scale: ir.Value | None
) -> ir.Value:
    """Return v_e z + v_o swap(z); a length of 0 stands for an axis on which v is flat."""
    height, width = lengths
    v = v[:, : height or 1, : width // 2 + 1]
    mirrored = v[:, -np.arange(v.shape[1])]
    even = build.initializer(f"{name}.even", ((v + mirrored) / 2)[:, : height // 2 + 1])
    even = even if scale is None else build.constant("Mul", even, scale)
    if not (height and width):
        for axis, length in ((1, height), (2, width)):
            if length:
                order = frequencies(length) if axis == 1 else frequencies(length).T
                even = build.constant("Gather", even, build.initializer("frequencies", order.ravel()), axis=axis)
        return build("Mul", z, even)
    pairs, columns = (height + 1) // 2, (width + 1) // 2
    odd = ((v - mirrored) / 2)[:, :pairs, None, :columns]
    odd[:, 0], odd[..., 0] = 0, 0
    for axis, order in ((1, frequencies(height)), (3, frequencies(width).T)):
        even = build.constant("Gather", even, build.initializer("frequencies", order), axis=axis)
    four = build.initializer("four", [0, 0, 4, -1])
    even = build.constant("Reshape", even, four)
    z = build("Reshape", z, build.initializer("pairs", [0, 0, -1, 4, columns]))
    y = build("Mul", z, even)
    if odd.any():
        mixed = build.initializer(f"{name}.odd", odd)
        signs = build.initializer("signs", SIGNS)
        if scale is not None:
            mixed = build.constant("Mul", mixed, build.constant("Unsqueeze", scale, build.initializer("last", [1])))
        mixed = build.constant("Mul", mixed, signs)
        swapped = build("Gather", z, build.initializer("swap", [3, 2, 1, 0]), axis=3)
        y = build("Add", y, build("Mul", swapped, mixed))
    return build("Reshape", y, build.initializer("image", [0, 0, -1, 2 * columns]))
