"""What a file holds, read before a runtime opens it: everything it needs, and no more work than its size suggests.

An ONNX file is one message of Protocol Buffers (onnx.proto; https://protobuf.dev/programming-guides/encoding). A
runtime that opens it follows the tensors that lie in other files and writes out every call of a function; both are
looked for here, in the bytes themselves, so that nothing but ONNX Runtime is needed to open a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from augserve.errors import ModelFileError

MAX_NODES = 1_000_000  # with every function written out; DenseNet-121 with AugNorm takes 20 thousand
MAX_FIELDS = 5_000_000
MAX_DEPTH = 100  # as in the readers of Protocol Buffers

# For each kind of message the fields, by number, that hold messages in which a tensor or a node may lie.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_NAME = {"node": 4, "function": 1}  # of the operator that a node is of, and that a function defines
_DOMAIN = {"node": 7, "function": 10}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor: where else its values lie

Operator = tuple[bytes, bytes]  # domain and name


@dataclass
class _Calls:
    """The nodes of each function, and those of the graphs (under None)."""

    of: dict[Operator | None, list[Operator]] = field(default_factory=dict)
    fields: int = 0


class _MalformedError(Exception):
    pass


def check_contents(content: bytes, path: object) -> None:
    """Refuse a file that is not whole in itself, or that grows beyond all measure when it is opened.

    Args:
        content: the file.
        path: only named in errors.

    Raises:
        ModelFileError: not an ONNX file; a tensor whose values lie in another file; functions that call themselves;
            more than MAX_NODES nodes once every function is written out.
    """
    calls = _Calls()
    try:
        _walk(memoryview(content), "model", calls, None, path, 0)
    except _MalformedError as error:
        raise ModelFileError(
            f"{path}: not an ONNX file that can be read ({error}); export the file again"
        ) from None
    _nodes(calls.of, path)


def _walk(
    message: memoryview, kind: str, calls: _Calls, function: Operator | None, path: object, depth: int
) -> None:
    """Follow a message and those in it; `function` is the one whose body this is."""
    if depth > MAX_DEPTH:
        raise _MalformedError(f"nested more than {MAX_DEPTH} deep")
    inner, name, domain = [], b"", b""
    for number, value in _fields(message, calls):
        if kind == "tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION) and value != 0:
            raise ModelFileError(
                f"{path}: expected a file that holds all its tensors; the values of one lie in another file; "
                "export the file again"
            )
        if not isinstance(value, int):
            if number in _FIELDS[kind]:
                inner.append((value, _FIELDS[kind][number]))
            elif number == _NAME.get(kind):
                name = bytes(value)
            elif number == _DOMAIN.get(kind):
                domain = bytes(value)
    if kind == "node":
        calls.of.setdefault(function, []).append((domain, name))
    if kind == "function":
        function = (domain, name)
        calls.of.setdefault(function, [])
    for value, inner_kind in inner:
        _walk(value, inner_kind, calls, function, path, depth + 1)


def _fields(message: memoryview, calls: _Calls) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: an integer, or the bytes of a text, a message or a packed list."""
    at = 0
    while at < len(message):
        calls.fields += 1
        if calls.fields > MAX_FIELDS:
            raise _MalformedError(f"more than {MAX_FIELDS} fields")
        tag, at = _varint(message, at)
        value: int | memoryview
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind in (1, 2, 5):
            length = 8 if kind == 1 else 4
            if kind == 2:
                length, at = _varint(message, at)
            if length > len(message) - at:
                raise _MalformedError("it ends within a field")
            value, at = message[at : at + length], at + length
        else:
            raise _MalformedError("a field of a type that ONNX files do not have")
        yield tag >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the integer at a place, and the place after it."""
    value = 0
    for index in range(10):
        if at + index >= len(message):
            raise _MalformedError("it ends within a number")
        byte = message[at + index]
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    raise _MalformedError("a number of more than 64 bits")


def _nodes(calls: dict[Operator | None, list[Operator]], path: object) -> None:
    """Refuse functions that call themselves, and more than MAX_NODES nodes; the called counted before callers."""
    count: dict[Operator | None, int] = {}
    open_: set[Operator | None] = set()
    waiting: list[Operator | None] = [None, *calls]
    while waiting:
        function = waiting[-1]
        if function in count:
            waiting.pop()
            continue
        called = [operator for operator in calls.get(function, []) if operator in calls]
        first = [operator for operator in dict.fromkeys(called) if operator not in count]
        if first:
            if function in open_ or any(operator in open_ for operator in first):
                shown = b".".join(first[0]).decode("utf-8", "replace")
                raise ModelFileError(f"{path}: its function {shown!r} calls itself; export the file again")
            open_.add(function)
            waiting += first
            continue
        open_.discard(function)
        waiting.pop()
        count[function] = len(calls.get(function, [])) + sum(count[operator] for operator in called)
        if count[function] > MAX_NODES:
            raise ModelFileError(
                f"{path}: expected at most {MAX_NODES} nodes with its functions written out; it has more; "
                "export the file again"
            )
