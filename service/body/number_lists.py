"""Nested lists of numbers in a JSON body, straight to an array: no Python object for each number.

Most bodies are one long list of numbers and a few settings. simdjson reads such a list without an object for each
number, which costs less than making one does, and leaves the caches to the model. It only ever says yes: what is
unusual about a body, the caller parses the long way, which knows what to say about it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

try:
    import simdjson
except ImportError:  # no wheel for this Python or platform
    simdjson = None  # type: ignore[assignment]

MAX_DEPTH = 8
MAX_FRAME = 2**10  # bytes of a frame that is remembered
_PLACE = secrets.token_hex(16)  # stands for the list while the rest is parsed: no sender knows it
_OPENING = ord("[")
_PARSERS = threading.local()


class Split(NamedTuple):
    """A body whose list of numbers was taken out of `instances`: the frame that is left, and the numbers."""

    frame: bytes
    values: npt.NDArray[np.float32]

    @property
    def members(self) -> Mapping[str, Any]:
        """What the body holds beside its instances."""
        return members_of(self.frame) or {}


def split_numbers(body: bytes) -> Split | None:
    """Parse {"instances": [[.., numbers]], settings without lists}.

    Args:
        body: JSON.

    Returns:
        What is left of it, and the instances float32 in their shape, with inf where a number is
        too large for that; None where the body is anything else, valid or not.

    Example:
        >>> split_numbers(b'{"instances": [[1, 2.5]], "tracking": true}').values
        array([[1. , 2.5]], dtype=float32)
    """
    start, end = body.find(b"["), body.rfind(b"]") + 1
    if simdjson is None or start < 0 or body.find(b'"', start, end) >= 0:  # images, or other lists
        return None
    frame = b'%b"%b"%b' % (body[:start], _PLACE.encode(), body[end:])
    if members_of(frame) is None:
        return None
    values = _values(body[start:end])
    return None if values is None else Split(frame, values)


def members_of(frame: bytes) -> Mapping[str, Any] | None:
    """Return the members of a body beside its instances; None where they are no list, or it is no object.

    Callers say the same again and again: what they say is remembered.
    """
    return _remembered(frame) if len(frame) <= MAX_FRAME else _members(frame)


def _members(frame: bytes) -> Mapping[str, Any] | None:
    try:
        members = orjson.loads(frame)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(members, dict) or members.pop("instances", None) != _PLACE:
        return None
    return MappingProxyType(members)


_remembered = lru_cache(maxsize=256)(_members)


def _values(text: bytes) -> npt.NDArray[np.float32] | None:
    """Return a JSON list of lists .. of numbers as an array; None where it is none, or lists differ in length."""
    parser = getattr(_PARSERS, "parser", None)
    _PARSERS.parser = None  # one that raises is not used again: what it parsed may live on in the traceback
    try:
        parser = parser or simdjson.Parser()
        root: Any = parser.parse(text)
        shape = _shape(root, int(np.count_nonzero(np.frombuffer(text, np.uint8) == _OPENING)))
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
