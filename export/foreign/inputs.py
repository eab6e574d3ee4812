"""What a foreign network takes: which inputs hold rows, how large they are, and values to try it with.

An input holds rows where its first axis is dynamic. Where none is, the first axis of the inputs with two axes or
more is the number of rows that the file was fixed to. Every other input is an option that all rows share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from augserve.errors import ExportError, InputError
from augserve.operators import STEERING

Array = npt.NDArray[np.generic]
Feed = dict[str, Array]

# Sizes to try for an axis that the file leaves open, the likeliest first.
SIZES = (
    64,
    32,
    96,
    48,
    128,
    224,
    256,
    160,
    192,
    299,
    320,
    384,
    416,
    480,
    512,
    640,
    16,
    8,
    4,
    2,
    1,
    1024,
    4096,
    16000,
)
_INTEGERS = (100, 2)  # values of integer inputs lie below the first, or below the second where the network says no


@dataclass(frozen=True)
class Port:
    """One input: `sizes` are those of its axes (without the rows' axis), None where any size is taken."""

    name: str
    dtype: np.dtype[np.generic]
    sizes: tuple[int | None, ...]
    has_rows: bool


@dataclass(frozen=True)
class Ports:
    """All inputs; `fixed_rows` is the number of rows that the file was written for, if it was."""

    inputs: tuple[Port, ...]
    fixed_rows: int | None
    highest: int = _INTEGERS[0]

    def guesses(self) -> Iterator[Ports]:
        """Yield these ports with the open sizes filled in, one guess after the other."""
        is_open = any(size is None for port in self.inputs for size in port.sizes)
        has_integers = any(port.dtype.kind in "iu" for port in self.inputs)
        for size in SIZES if is_open else SIZES[:1]:
            filled = tuple(
                replace(port, sizes=tuple(size if s is None else s for s in port.sizes)) for port in self.inputs
            )
            for highest in _INTEGERS if has_integers else _INTEGERS[:1]:
                yield replace(self, inputs=filled, highest=highest)

    def random(self, rows: int, seed: int = 0) -> Feed:
        """Return values for `rows` rows: normal, or uniform integers; the sizes must be filled in."""
        generator = np.random.default_rng(seed)
        feed: Feed = {}
        for port in self.inputs:
            shape = [size or 0 for size in port.sizes]
            shape = [rows, *shape] if port.has_rows else shape
            if port.dtype.kind == "f":
                values: Array = generator.normal(size=shape)
            elif port.dtype.kind == "b":
                values = generator.random(shape) < 0.5
            else:
                highest = 256 if port.dtype == np.uint8 else self.highest
                values = generator.integers(0, min(highest, 2 ** (8 * port.dtype.itemsize - 1)), shape)
            feed[port.name] = values.astype(port.dtype)
        return feed

    def check(self, example: Mapping[str, npt.ArrayLike]) -> Feed:
        """Return given values as arrays of the right types.

        Raises:
            InputError: inputs that are missing or unknown, or another type, shape or number of rows.
        """
        names = [port.name for port in self.inputs]
        if sorted(example) != sorted(names):
            raise InputError(f"expected example values for {', '.join(names)}; got {', '.join(sorted(example))}")
        feed: Feed = {}
        for port in self.inputs:
            array = np.asarray(example[port.name])
            sizes = array.shape[1:] if port.has_rows else array.shape
            right = len(sizes) == len(port.sizes) and all(
                size in (None, came) for size, came in zip(port.sizes, sizes, strict=True)
            )
            if array.dtype != port.dtype or not right or array.ndim < port.has_rows:
                expected = ", ".join(
                    [*(["N"] if port.has_rows else []), *("any" if s is None else str(s) for s in port.sizes)]
                )
                raise InputError(
                    f"expected {port.name} as {port.dtype} ({expected}); got {array.dtype} {array.shape}"
                )
            feed[port.name] = array
        counts = {len(feed[port.name]) for port in self.inputs if port.has_rows}
        if len(counts) != 1 or 0 in counts:
            raise InputError(f"expected as many rows in every input, at least 1; got {sorted(counts)}")
        return feed

    def of_sizes(self, feed: Feed) -> Ports:
        """Return these ports with the sizes of given values."""
        return replace(
            self,
            inputs=tuple(
                replace(port, sizes=feed[port.name].shape[1:] if port.has_rows else feed[port.name].shape)
                for port in self.inputs
            ),
        )

    def with_shapes(self, shapes: Mapping[str, Sequence[int]]) -> Ports:
        """Return these ports with the sizes of the named ones filled in.

        Raises:
            InputError: an unknown name, or sizes that the file does not take.
        """
        by_name = {port.name: port for port in self.inputs}
        for name, sizes in shapes.items():
            port = by_name.get(name)
            if port is None:
                raise InputError(f"expected shapes of {', '.join(by_name)}; got one of {name!r}")
            fits = len(sizes) == len(port.sizes) and all(
                size > 0 and own in (None, size) for own, size in zip(port.sizes, sizes, strict=True)
            )
            if not fits:
                expected = "x".join("any" if size is None else str(size) for size in port.sizes)
                raise InputError(f"expected a row of {name} as {expected}; got {'x'.join(map(str, sizes))}")
            by_name[name] = replace(port, sizes=tuple(sizes))
        return replace(self, inputs=tuple(by_name.values()))


def take_rows(ports: Ports, feed: Feed, rows: Array) -> Feed:
    """Return the values with the rows of these numbers only; options stay as they are."""
    return {port.name: feed[port.name][rows] if port.has_rows else feed[port.name] for port in ports.inputs}


def rows_of(ports: Ports, feed: Feed) -> int:
    """Return the number of rows in these values."""
    return next(len(feed[port.name]) for port in ports.inputs if port.has_rows)


def ports_of(model: ModelProto) -> Ports:
    """Read the inputs of a model.

    Raises:
        ExportError: an input that holds no numbers, no input that can hold rows, or a name that conversion needs.
    """
    values = list(model.graph.input)
    for value in (*values, *model.graph.output):
        if not value.name.isprintable():
            raise ExportError(f"the name {value.name!r} of an input or output has control characters; rename it")
    for value in values:
        if value.name in STEERING:
            raise ExportError(
                f"the input {value.name!r} has the name of one that conversion adds; rename it in the original"
            )
    dims = {value.name: _dims(value) for value in values}
    dtypes = {value.name: _dtype(value) for value in values}
    open_first = {name for name, sizes in dims.items() if sizes and sizes[0] is None}
    fixed = None
    if not open_first:
        fixed = next((sizes[0] for sizes in dims.values() if len(sizes) >= 2), None)
        if fixed is None:
            raise ExportError("no input has an axis for rows: expected one of shape (N, ...)")
        open_first = {name for name, sizes in dims.items() if len(sizes) >= 2 and sizes[0] == fixed}
    inputs = tuple(
        Port(name, dtypes[name], sizes[1:] if name in open_first else sizes, name in open_first)
        for name, sizes in dims.items()
    )
    return Ports(inputs, fixed)


def free_rows(model: ModelProto, ports: Ports) -> str:
    """Make the first axis of every input that has rows dynamic, in place, under one name, which is returned."""
    symbol = _symbol(model, ports)
    has_rows = {port.name for port in ports.inputs if port.has_rows}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if value.name in has_rows and axis == 0:
                dim.Clear()
                dim.dim_param = symbol
            elif not dim.dim_value > 0 and dim.dim_param in ("", "?"):
                dim.Clear()
    return symbol


def _symbol(model: ModelProto, ports: Ports) -> str:
    """Return the name that the file has for the number of rows, or one that it uses for nothing else."""
    values = [*model.graph.input, *model.graph.output]
    taken = {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim[1:]}
    has_rows = {port.name for port in ports.inputs if port.has_rows}
    own = [v.type.tensor_type.shape.dim[0].dim_param for v in model.graph.input if v.name in has_rows]
    names: list[str] = [*own, "N", "rows", "number_of_rows"]
    return next(name for name in names if name not in ("", "?") and name not in taken)


def _dims(value: ValueInfoProto) -> tuple[int | None, ...]:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ExportError(f"the input {value.name!r} is no tensor of known rank, so its rows cannot be told")
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)


def _dtype(value: ValueInfoProto) -> np.dtype[np.generic]:
    kind = value.type.tensor_type.elem_type
    dtype: np.dtype[np.generic] = helper.tensor_dtype_to_np_dtype(kind)
    if kind == TensorProto.STRING or dtype.kind not in "fiub":
        raise ExportError(
            f"the input {value.name!r} holds {TensorProto.DataType.Name(kind)}, not numbers that NumPy has"
        )
    return dtype
