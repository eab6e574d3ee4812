"""Nested lists of numbers in a JSON body, straight to an array: no Python object for each number.

Most bodies are one long list of numbers and a few settings. simdjson reads such a list without an object for each
number, which costs less than making one does, and leaves the caches to the model. It only ever says yes: what is
unusual about a body, the caller parses the long way, which knows what to say about it.
"""

from __future__ import annotations

import secrets
import threading
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

try:
    import simdjson
except ImportError:  # no wheel for this Python or platform
    simdjson = None  # type: ignore[assignment]

MAX_DEPTH = 8
_PLACE = secrets.token_hex(16)  # stands for the list while the rest is parsed: no sender knows it
_PARSERS = threading.local()


class Split(NamedTuple):
    """A body's members, with a list of numbers taken out of `instances`."""

    members: dict[str, Any]
    values: npt.NDArray[np.float32]


def split_numbers(body: bytes) -> Split | None:
    """Parse {"instances": [[.., numbers]], settings without lists}.

    Args:
        body: JSON.

    Returns:
        The other members, and the instances float32 in their shape, with inf where a number is too large for that;
        None where the body is anything else, valid or not.

    Example:
        >>> split_numbers(b'{"instances": [[1, 2.5]], "tracking": true}')
        Split(members={'tracking': True}, values=array([[1. , 2.5]], dtype=float32))
    """
    start, end = body.find(b"["), body.rfind(b"]") + 1
    if simdjson is None or start < 0 or body.find(b'"', start, end) >= 0:  # images, or other lists
        return None
    try:
        members = orjson.loads(b'%b"%b"%b' % (body[:start], _PLACE.encode(), body[end:]))
    except orjson.JSONDecodeError:
        return None
    if not isinstance(members, dict) or members.pop("instances", None) != _PLACE:
        return None
    values = _values(body[start:end])
    return None if values is None else Split(members, values)


def _values(text: bytes) -> npt.NDArray[np.float32] | None:
    """Return a JSON list of lists .. of numbers as an array; None where it is none, or lists differ in length."""
    parser = getattr(_PARSERS, "parser", None)
    _PARSERS.parser = None  # one that raises is not used again: what it parsed may live on in the traceback
    try:
        parser = parser or simdjson.Parser()
        root: Any = parser.parse(text)
        shape = _shape(root, text.count(b"["))
        if shape is None:
            return None
        flat = np.frombuffer(root.as_buffer(of_type="d"), np.float64)
        with np.errstate(over="ignore"):
            values: npt.NDArray[np.float32] = flat.reshape(shape).astype(np.float32)
        del root
    except (ValueError, TypeError, RuntimeError):
        return None
    _PARSERS.parser = parser
    return values


def _shape(root: Any, lists: int) -> list[int] | None:
    """Return the shape, given how many lists there are in all: then no list can hide where a number should be."""
    shape: list[int] = []
    level: Any = (root,)
    seen = 0
    while seen < lists and len(shape) < MAX_DEPTH:
        level = list(level)
        lengths = set(map(len, level))
        if len(lengths) != 1:
            return None
        seen += len(level)
        shape += lengths
        level = chain.from_iterable(level)
    return shape if seen == lists else None
