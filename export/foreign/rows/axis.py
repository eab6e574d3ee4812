"""Where the rows of the input lie in every value of a network, so that each row can be told from the others.

A value that holds rows has one axis of size outer * N * inner, on which index (o * N + n) * inner + i is of row n.
Every operator has a rule (`rules`) that says where the rows lie in its result, given that row n of the
result depends on row n of its inputs alone. What has no rule, or breaks this, makes a value `Mixed`, and so is
whatever depends on it. Shapes are those of a `Trace`; each result of a rule is compared with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from augserve.export.foreign.load import show
from augserve.export.foreign.trace import ROWS, Shape, Trace, values_of

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Rows:
    """The rows lie on one axis; `moved_by` is the last operator that put them elsewhere than alone on axis 0."""

    axis: int
    outer: int = 1
    inner: int = 1
    moved_by: str = ""

    @property
    def first(self) -> bool:
        """Whether they lie on the first axis, alone."""
        return (self.axis, self.outer, self.inner) == (0, 1, 1)

    def same(self, other: Rows) -> bool:
        """Whether both lie in the same way on the same axis."""
        return (self.axis, self.outer, self.inner) == (other.axis, other.outer, other.inner)


@dataclass(frozen=True)
class Constant:
    """The same for any rows and any number of them."""


@dataclass(frozen=True)
class Count:
    """Depends on the number of rows, and not on what they hold."""


@dataclass(frozen=True)
class Mixed:
    """The rows cannot be told apart, and why."""

    reason: str


Kind = Rows | Constant | Count | Mixed


class NotByRowError(Exception):
    """A rule cannot tell the rows apart; the text says what the operator does to them."""


@dataclass(frozen=True)
class Step:
    """One node, its inputs and the shapes of its outputs, as rules see them. Absent inputs are None."""

    node: NodeProto
    kinds: list[Kind | None]
    in_shapes: list[tuple[Shape, ...] | None]
    out_shapes: list[tuple[Shape, ...] | None]
    settings: list[tuple[Array, ...] | None]

    def rows(self, k: int) -> Rows | None:
        """Return where the rows lie in input k; None where it has none or is absent."""
        kind = self.kinds[k] if k < len(self.kinds) else None
        return kind if isinstance(kind, Rows) else None

    def rank(self, k: int) -> int:
        """Return the number of axes of input k."""
        shapes = self.in_shapes[k]
        if shapes is None or len({len(shape) for shape in shapes}) != 1:
            raise NotByRowError(f"takes a {k + 1}. input whose rank is not known")
        return len(shapes[0])

    @property
    def out_rank(self) -> int:
        """The number of axes of the first output."""
        shapes = self.out_shapes[0]
        if shapes is None or len({len(shape) for shape in shapes}) != 1:
            raise NotByRowError("has a result whose rank depends on the number of rows")
        return len(shapes[0])

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute."""
        return next((helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), default)

    def setting(self, k: int) -> Array | None:
        """Return the content of input k, which has to be the same for any number of rows; None if it is absent."""
        if k >= len(self.kinds) or self.kinds[k] is None:
            return None
        values = None if isinstance(self.kinds[k], Rows) else self.settings[k]
        if values is None or any(not np.array_equal(values[0], value) for value in values[1:]):
            raise NotByRowError(f"takes a {k + 1}. input that depends on the rows or their number")
        return values[0]

    def is_constant(self, k: int) -> bool:
        """Whether input k is absent or the same for any rows."""
        return isinstance(self.kinds[k], Constant | None)

    def only(self, *places: int, counts: tuple[int, ...] = ()) -> None:
        """Raise if an input elsewhere has rows, or one outside of `counts` depends on their number."""
        for k, kind in enumerate(self.kinds):
            allowed = (k in places and isinstance(kind, Rows)) or (k in counts and isinstance(kind, Count))
            if not allowed and not self.is_constant(k):
                raise NotByRowError(f"takes a {k + 1}. input that depends on the rows or their number")


Results = Sequence[Rows | None]  # one entry an output; None: mixed; shorter: the last one repeats
Rule = Callable[[Step], Results]


def required(rows: Rows | None) -> Rows:
    """Return the rows of an input that has to have some."""
    if rows is None:
        raise NotByRowError("takes rows where it may mix them")
    return rows


def axis_of(step: Step, default: int) -> int:
    """Return the attribute `axis` as an axis of the first input."""
    return int(step.attribute("axis", default)) % step.rank(0)


def follow_rows(
    nodes: Sequence[NodeProto], trace: Trace, given: Mapping[str, Kind], rules: Mapping[str, Rule]
) -> dict[str, Kind]:
    """Return for every value of a graph where its rows lie.

    Args:
        nodes: in topological order.
        trace: shapes of all values.
        given: the graph's inputs and initializers.
        rules: by operator; see `rules`.

    Returns:
        A kind for each value; for one that is Mixed, the reason names the node that made it so.
    """
    kinds = dict(given)
    for node in nodes:
        taken = [kinds[name] for name in values_of(node)]
        mixed = next((kind for kind in taken if isinstance(kind, Mixed)), None)
        results: list[Kind]
        if mixed is not None:
            results = [mixed] * len(node.output)
        elif node.op_type in ("Shape", "Size") and not node.domain:
            constant = isinstance(taken[0], Constant)
            results = [taken[0] if constant else _of_count(trace, node.output[0])]
        elif any(isinstance(kind, Rows) for kind in taken):
            results = _by_rule(node, trace, kinds, rules)
        elif node.op_type.startswith(("Random", "Bernoulli", "Multinomial")):
            results = [Mixed(f"{show(node)} draws random numbers")] * len(node.output)
        elif any(isinstance(kind, Count) for kind in taken):
            results = [_without_rows(node, trace, kinds, name) for name in node.output]
        else:
            results = [Constant()] * len(node.output)
        kinds.update(zip(node.output, results, strict=True))
    return kinds


def _by_rule(node: NodeProto, trace: Trace, kinds: Mapping[str, Kind], rules: Mapping[str, Rule]) -> list[Kind]:
    rule = None if node.domain else rules.get(node.op_type)
    if rule is None:
        mixed = Mixed(f"{show(node)} may mix rows: no rule says where they lie in its result")
        return [mixed] * len(node.output)
    step = Step(
        node,
        [kinds[name] if name else None for name in node.input],
        [trace.shapes.get(name) for name in node.input],
        [trace.shapes.get(name) for name in node.output],
        [trace.values.get(name) for name in node.input],
    )
    try:
        found = list(rule(step))
    except NotByRowError as error:
        return [Mixed(f"{show(node)} {error}")] * len(node.output)
    found += [found[-1]] * (len(node.output) - len(found))
    results: list[Kind] = []
    for name, rows in zip(node.output, found, strict=False):
        if rows is None:
            results.append(Mixed(f"{show(node)} counts over the rows in its output {name!r}"))
        elif name and not _fits(rows, trace.shapes.get(name, ())):
            results.append(Mixed(f"{show(node)} makes {name!r} in a shape that is not one of rows"))
        else:
            results.append(replace(rows, moved_by=_mover(node, step, rows)))
    return results


def _mover(node: NodeProto, step: Step, rows: Rows) -> str:
    if rows.first:
        return ""
    return next((kind.moved_by for kind in step.kinds if isinstance(kind, Rows) and kind.same(rows)), show(node))


def _fits(rows: Rows, shapes: tuple[Shape, ...]) -> bool:
    """Whether the axis of the rows grows with their number as said, and no other axis depends on it."""
    if len(shapes) != len(ROWS) or any(rows.axis >= len(shape) for shape in shapes):
        return False
    sizes = [shape[rows.axis] == rows.outer * n * rows.inner for n, shape in zip(ROWS, shapes, strict=True)]
    rest = {shape[: rows.axis] + shape[rows.axis + 1 :] for shape in shapes}
    return all(sizes) and len(rest) == 1


def _of_count(trace: Trace, name: str) -> Kind:
    """Return the kind of what depends on shapes alone: it is constant if it is equal for all numbers of rows."""
    values = trace.values.get(name)
    same = values is not None and all(np.array_equal(values[0], value) for value in values[1:])
    return Constant() if same else Count()


def _without_rows(node: NodeProto, trace: Trace, kinds: Mapping[str, Kind], name: str) -> Kind:
    """Return the kind of what a node makes from the number of rows, and from no row."""
    shapes = trace.shapes.get(name)
    if not name or shapes is None or any(len(shape) != len(shapes[0]) for shape in shapes):
        return Mixed(f"{show(node)} depends on the number of rows in a way that cannot be followed")
    varying = [axis for axis in range(len(shapes[0])) if len({shape[axis] for shape in shapes}) > 1]
    if not varying:
        return _of_count(trace, name)
    axis = varying[0]
    inner = shapes[0][axis] // ROWS[0]
    rows = Rows(axis, 1, inner, "" if (axis, inner) == (0, 1) else show(node))
    if _repeats(node, trace, kinds, axis) and _fits(rows, shapes):
        return rows  # the same for every row
    return Mixed(f"{show(node)} numbers the rows, or mixes them")


def _repeats(node: NodeProto, trace: Trace, kinds: Mapping[str, Kind], axis: int) -> bool:
    """Whether a node writes one constant as often as there are rows."""
    if node.op_type == "ConstantOfShape":
        return True
    if node.op_type not in ("Expand", "Tile") or not isinstance(kinds[node.input[0]], Constant):
        return False
    source, result = trace.shapes[node.input[0]][-1], trace.shapes[node.output[0]][-1]
    place = axis - len(result) + len(source)
    return node.op_type == "Tile" or place < 0 or source[place] == 1
