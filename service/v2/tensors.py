"""Tensors of the Open Inference Protocol: JSON numbers or little-endian bytes, to NumPy and back.

Sizes are compared as Python integers before anything is allocated, so no shape can overflow or ask for memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from augserve.errors import InputError, MalformedRequestError
from augserve.service.schemas import shorten

DATATYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "FP16": np.dtype("<f2"),
    "UINT8": np.dtype("u1"),
}


def check_datatype(datatype: object) -> str:
    """Return the datatype of an input.

    Raises:
        InputError: one that is not read, with those that are.
    """
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise InputError(f"unknown datatype {shorten(datatype)}; choose one of: {', '.join(DATATYPES)}")
    return datatype


def from_binary(
    data: memoryview, announced: object, datatype: str, shape: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Read a tensor from the bytes behind the JSON part.

    Args:
        data: all bytes behind the JSON part.
        announced: the tensor's binary_data_size.
        datatype: one of `DATATYPES`.
        shape: of sizes that were checked.

    Returns:
        float32 of that shape, with memory of its own.

    Raises:
        InputError: a binary_data_size that shape and datatype do not give.
        MalformedRequestError: fewer or more bytes than announced.
    """
    dtype = DATATYPES[datatype]
    size = math.prod(shape) * dtype.itemsize
    if type(announced) is not int or announced != size:
        raise InputError(
            f"expected binary_data_size {size}, {datatype} of shape {list(shape)}; got {shorten(announced)}"
        )
    if len(data) != size:
        raise MalformedRequestError(f"expected {size} bytes of tensors behind the JSON part; got {len(data)}")
    # What lies behind the JSON part is not aligned: ONNX Runtime never sees these bytes, but a copy.
    return np.frombuffer(data, dtype).astype(np.float32).reshape(shape)


def from_json(data: object, datatype: str, shape: Sequence[int]) -> npt.NDArray[np.float64]:
    """Read a tensor from JSON numbers, nested as the shape says or in one flat list (row-major).

    Returns:
        float64 of that shape: values that `datatype` can hold, rounded to half precision for FP16.

    Raises:
        InputError: not numbers, ragged, as many as another shape has, or outside the datatype.
    """
    level: list[Any] = [data]
    came: list[int] = []
    while not (kinds := set(map(type, level))) <= {int, float}:
        if kinds != {list}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds - {list, int, float})) or "list beside numbers"
            raise InputError(f"expected data as a list of numbers, flat or nested; got values of type {names}")
        lengths = set(map(len, level))
        if len(lengths) != 1:
            raise InputError("expected data as lists of equal length; got lists of different lengths")
        came += lengths
        level = list(chain.from_iterable(level))
    if came not in ([math.prod(shape)], list(shape)):
        raise InputError(
            f"expected data of shape {list(shape)} or {[math.prod(shape)]}; got {came if came else shorten(data)}"
        )
    values = np.array(level, np.float64).reshape(shape)
    if datatype == "UINT8" and not ((values >= 0) & (values <= 255) & (values == np.floor(values))).all():
        raise InputError("expected data of UINT8 as whole numbers from 0 to 255; got others")
    if datatype == "FP16":
        with np.errstate(over="ignore"):  # beyond half precision is inf, which the rows' check names
            return values.astype(np.float16).astype(np.float64)
    return values


def bytes_of(texts: Iterable[str]) -> bytes:
    r"""Return BYTES elements: the length of each in UTF-8 (4 bytes, little-endian) before it.

    Example:
        >>> bytes_of(["a"])
        b'\x01\x00\x00\x00a'
    """
    encoded = [text.encode() for text in texts]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
