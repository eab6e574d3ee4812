"""Where the rows lie after operators that move, pick, repeat or join elements: rules of `axis`.

Source: the operators' definitions, https://onnx.ai/onnx/operators, opsets 18 and newer.
"""

from __future__ import annotations

import math

import numpy as np

from augserve.export.foreign.rows.axis import NotByRowError, Results, Rows, Step, axis_of, required


def transpose(step: Step) -> Results:
    """The rows' axis goes where `perm` takes it."""
    rows = required(step.rows(0))
    order = step.attribute("perm") or list(reversed(range(step.rank(0))))
    return [Rows(list(order).index(rows.axis), rows.outer, rows.inner)]


def reshape(step: Step) -> Results:
    """Elements keep their order: as many stand before, and within, the index of a row as did before."""
    step.only(0, counts=(1,))
    rows = required(step.rows(0))
    before, after = step.in_shapes[0], step.out_shapes[0]
    if before is None or after is None:
        raise NotByRowError("has a shape that is not known")
    outer = {rows.outer * math.prod(shape[: rows.axis]) for shape in before}
    inner = {rows.inner * math.prod(shape[rows.axis + 1 :]) for shape in before}
    if len(outer) == len(inner) == 1:
        for axis in range(min(len(shape) for shape in after)):
            found = _place(axis, outer.copy().pop(), inner.copy().pop(), before, after)
            if found is not None:
                return [found]
    raise NotByRowError("merges the rows with other axes so that they cannot be told apart")


def _place(
    axis: int, outer: int, inner: int, before: tuple[tuple[int, ...], ...], after: tuple[tuple[int, ...], ...]
) -> Rows | None:
    """Return the rows if this axis of the result can hold them, at each number of rows in the same way."""
    places = set()
    for old, new in zip(before, after, strict=True):
        total, leading = math.prod(old), math.prod(new[:axis])
        trailing = math.prod(new[axis + 1 :])
        if not total or not leading or not trailing or outer % leading or inner % trailing:
            return None
        rows = total // (outer * inner)
        if new[axis] != (outer // leading) * rows * (inner // trailing):
            return None
        places.add((outer // leading, inner // trailing))
    return Rows(axis, *places.pop()) if len(places) == 1 else None


def concat(step: Step) -> Results:
    """Join along another axis than that of the rows."""
    found = [step.rows(k) for k in range(len(step.kinds))]
    rows = required(found[0])
    if any(other is None or not rows.same(other) for other in found) or axis_of(step, 0) == rows.axis:
        raise NotByRowError("joins values along the axis that holds the rows, or rows on different axes")
    return [rows]


def cut(step: Step) -> Results:
    """Slice: every axis but that of the rows at places known beforehand."""
    step.only(0, counts=(1, 2))  # where an axis of the rows is left whole, its end may be their number
    rows, rank = required(step.rows(0)), step.rank(0)
    starts, ends = step.settings[1], step.settings[2]
    if starts is None or ends is None:
        raise NotByRowError("cuts at places that depend on the rows")
    axes, steps = step.setting(3), step.setting(4)
    count = starts[0].size
    along = [int(axis) % rank for axis in (range(count) if axes is None else axes.reshape(-1))]
    strides = [1] * count if steps is None else [int(stride) for stride in steps.reshape(-1)]
    for k, axis in enumerate(along):
        places = {(int(s.reshape(-1)[k]), int(e.reshape(-1)[k])) for s, e in zip(starts, ends, strict=True)}
        if axis == rows.axis:
            if strides[k] != 1 or not _same_size(step, axis):
                raise NotByRowError("cuts along the axis that holds the rows")
        elif len(places) != 1:
            raise NotByRowError("cuts at places that depend on the number of rows")
    return [rows]


def _same_size(step: Step, axis: int) -> bool:
    before, after = step.in_shapes[0], step.out_shapes[0]
    return before is not None and after is not None and [s[axis] for s in before] == [s[axis] for s in after]


def gather(step: Step) -> Results:
    """Pick from rows by constant indices, or from a constant by indices that hold rows."""
    data, indices = step.rows(0), step.rows(1)
    axis = axis_of(step, 0)
    if data is None:
        step.only(1)
        indices = required(indices)
        return [Rows(axis + indices.axis, indices.outer, indices.inner)]
    step.only(0)
    if axis == data.axis:
        raise NotByRowError("picks rows by number")
    shift = step.rank(1) - 1 if axis < data.axis else 0
    return [Rows(data.axis + shift, data.outer, data.inner)]


def gather_elements(step: Step) -> Results:
    """Data and indices (and updates) with the rows on the same axis, another one than is indexed."""
    found = [step.rows(k) for k in range(len(step.kinds))]
    rows = required(found[0])
    if any(other is None or not rows.same(other) for other in found) or axis_of(step, 0) == rows.axis:
        raise NotByRowError("picks elements across rows")
    return [rows]


def gather_nd(step: Step) -> Results:
    """Pick from a constant by indices that hold rows, or within each row (batch_dims)."""
    data, indices = step.rows(0), step.rows(1)
    batch_dims = step.attribute("batch_dims", 0)
    if data is None and indices is not None and batch_dims == 0 and indices.axis < step.rank(1) - 1:
        step.only(1)
        return [indices]
    if data is not None and indices is not None and data.same(indices) and data.axis < batch_dims:
        return [data]
    raise NotByRowError("picks elements across rows")


def expand(step: Step) -> Results:
    """Broadcast to a larger shape."""
    step.only(0, counts=(1,))
    rows = required(step.rows(0))
    return [Rows(step.out_rank - step.rank(0) + rows.axis, rows.outer, rows.inner)]


def tile(step: Step) -> Results:
    """Repeat along other axes than that of the rows."""
    step.only(0, counts=(1,))
    return [required(step.rows(0))]  # repeats of the rows change the axis' size, which is looked at


def pad(step: Step) -> Results:
    """Pad other axes than that of the rows."""
    step.only(0)
    rows, rank = required(step.rows(0)), step.rank(0)
    pads, axes = step.setting(1), step.setting(3)
    if pads is None:
        raise NotByRowError("pads by what depends on the rows")
    along = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes.reshape(-1)]
    amounts = pads.reshape(2, -1)
    if any(amounts[:, k].any() for k, axis in enumerate(along) if axis == rows.axis):
        raise NotByRowError("pads the axis that holds the rows")
    return [rows]


def resize(step: Step) -> Results:
    """Resize other axes than that of the rows, whose number may stand among the sizes."""
    step.only(0, counts=(3,))  # sizes may hold the number of rows
    rows, rank = required(step.rows(0)), step.rank(0)
    axes = [axis % rank for axis in step.attribute("axes") or range(rank)]
    if rows.axis not in axes:
        step.only(0)
        return [rows]
    place = axes.index(rows.axis)
    scales = step.setting(2)
    whole = scales is None or scales.size == 0 or float(scales.reshape(-1)[place]) == 1
    plain = step.attribute("coordinate_transformation_mode", b"half_pixel") != b"tf_crop_and_resize"
    stretched = step.attribute("keep_aspect_ratio_policy", b"stretch") == b"stretch"
    if not (whole and plain and stretched and _same_size(step, rows.axis)):
        raise NotByRowError("resizes the axis that holds the rows")
    sizes = step.settings[3] if len(step.settings) > 3 else None
    if sizes is not None and len({tuple(np.delete(s.reshape(-1), place).tolist()) for s in sizes}) != 1:
        raise NotByRowError("resizes to what depends on the number of rows")
    return [rows]


def one_hot(step: Step) -> Results:
    """Add an axis."""
    step.only(0)
    rows = required(step.rows(0))
    place = step.attribute("axis", -1) % (step.rank(0) + 1)
    return [Rows(rows.axis + (place <= rows.axis), rows.outer, rows.inner)]
