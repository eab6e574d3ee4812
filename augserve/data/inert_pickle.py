"""Pickles read as descriptions: nothing that a pickle names is imported, and nothing that it calls is run.

Source: the format is Python's (pickle and pickletools, protocols 0 to 5); how NumPy writes an array into it
is NumPy's (`ndarray.__reduce__`), under the names of NumPy 1 and of NumPy 2.

The few names that an array needs become inert `_Record` objects, which keep what they were called with;
arrays are built from those records here. Every other name is refused, so that a file from a user's folder can
at worst be useless. Two further limits keep a hostile file from exhausting memory or the C stack. Of Python
2's protocol 0 only ASCII text is read: class names, but no arrays; the official arrays use protocol 2.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from augserve.data.reading import reading
from augserve.errors import DataError

_NAMES = {
    (module, name)
    for name, modules in {
        "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
        "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
        "ndarray": ("numpy",),
        "dtype": ("numpy",),
        "encode": ("_codecs",),  # how Python 3 writes bytes under protocols 0 to 2
        "bytes": ("builtins", "__builtin__"),  # and empty bytes
    }.items()
    for module in modules
}
_DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
_BYTE_ORDERS = {"|": "<", "=": "<", "<": "<", ">": ">"}
_MAX_TUPLES = 25_000  # nested one in another, many more would overflow the C stack when hashed


def read_pickle(content: bytes, source: object) -> dict[str, Any]:
    """Read a pickled dict of arrays, lists, text, bytes and numbers, from Python 2 or 3.

    Args:
        content: the whole file.
        source: the file, as messages name it.

    Returns:
        The dict, its keys as str. Values: integer arrays, bytes (also what Python 2 called str), str,
        numbers, and lists of these.

    Raises:
        DataError: a pickle that is damaged, names anything else, or is not such a dict.

    Example:
        >>> read_pickle(pickle.dumps({b"labels": [3, 1]}), "data_batch_1")
        {'labels': [3, 1]}
    """
    with reading(source, "a pickle of arrays, lists, text and numbers"):
        _check_opcodes(content, source)
        top = _InertUnpickler(content, source).load()
        if type(top) is not dict:
            raise DataError(f"{source}: expected a pickled dict; got {_describe(top)}")
        return {_text(key, source): _plain(value, source) for key, value in top.items()}


class _Record:
    """A name of `_NAMES`, what it was called with, and the state it was then given."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None) -> None:
        self.name, self.args = name, args
        self.state: Any = None

    def __call__(self, *args: Any) -> _Record:
        if self.args is not None:
            raise TypeError(f"{self.name} called twice")
        return _Record(self.name, args)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, source: object) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._source = source

    def find_class(self, module_name: str, global_name: str, /) -> _Record:
        if (module_name, global_name) not in _NAMES:
            raise DataError(
                f"{self._source}: refused, because this pickle names {module_name}.{global_name}; expected "
                "only arrays, lists, text and numbers; do not open this file with anything else"
            )
        return _Record(global_name)


def _check_opcodes(content: bytes, source: object) -> None:
    """Refuse what the unpickler would do before any name is asked for."""
    tuples, end = 0, 0
    for opcode, argument, position in pickletools.genops(content):
        tuples += opcode.name.startswith("TUPLE")
        far = "PUT" in opcode.name and isinstance(argument, int) and argument > len(content)
        if tuples > _MAX_TUPLES or far or opcode.name.startswith(("EXT", "NEXT_BUFFER")):
            raise DataError(f"{source}: refused: no array file needs the pickle opcode {opcode.name} like this")
        end = position or 0
    if end + 1 != len(content):
        raise DataError(f"{source}: expected {end + 1} bytes, where its pickle ends; got {len(content)}")


def _plain(value: Any, source: object) -> Any:
    """Return a value of the dict with its records made into arrays and bytes."""
    if isinstance(value, list):
        return [_plain_leaf(one, source) for one in value]
    return _plain_leaf(value, source)


def _plain_leaf(value: Any, source: object) -> Any:
    if not isinstance(value, _Record):
        return value
    match value.name, value.args, value.state:
        case "bytes", (), None:
            return b""
        case "encode", (str(text), "latin1"), None:
            return text.encode("latin1")
        case "_reconstruct", tuple(), (int(), tuple(shape), _Record() as dtype, order, raw):
            return _array(_plain_leaf(raw, source), shape, dtype, "F" if order else "C", source)
        case "_frombuffer", (
            bytes() | bytearray() as raw,
            _Record() as dtype,
            tuple(shape),
            "C" | "F" as order,
        ), None:
            return _array(raw, shape, dtype, order, source)
    raise DataError(f"{source}: expected arrays, lists, text and numbers; got {_describe(value)}")


def _array(
    raw: Any, shape: tuple[Any, ...], dtype: _Record, order: Literal["C", "F"], source: object
) -> npt.NDArray[Any]:
    """Build the array that NumPy's pickle describes, from its bytes."""
    code = _word(dtype.args[0]) if dtype.name == "dtype" and dtype.args else None
    byte_order = _word(dtype.state[1]) if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "|"
    if code not in _DTYPES or byte_order not in _BYTE_ORDERS:
        raise DataError(f"{source}: expected an array of integers; got the element type {code!r}")
    item = np.dtype(_BYTE_ORDERS[byte_order] + code)
    if not isinstance(raw, bytes | bytearray) or not all(type(size) is int and size >= 0 for size in shape):
        raise DataError(f"{source}: expected the sizes and bytes of an array; got {_describe(raw)}")
    if len(raw) != math.prod(shape) * item.itemsize:
        raise DataError(f"{source}: expected the bytes of an array {shape}, {item}; got {len(raw)} bytes")
    flat = np.frombuffer(bytes(raw), dtype=item)
    return flat.reshape(shape, order=order).astype(item.newbyteorder("="))  # a copy: writable


def _word(value: Any) -> Any:
    """Return what Python 2 wrote as bytes and Python 3 as text, as text."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def _text(key: Any, source: object) -> str:
    word = _word(_plain_leaf(key, source))
    if not isinstance(word, str):
        raise DataError(f"{source}: expected names as keys; got {_describe(word)}")
    return word


def _describe(value: Any) -> str:
    return f"numpy's {value.name}" if isinstance(value, _Record) else f"a {type(value).__name__}"
