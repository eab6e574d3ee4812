"""From the instances of a request to one array of rows: nested numbers, encoded images, or both.

The numbers are looked at before NumPy sees them: given a list that holds text, NumPy would widen every entry
to the longest one, and a small body would ask for gigabytes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from augserve.errors import AugserveError, InputError, PayloadTooLargeError
from augserve.manifest import Manifest
from augserve.runtime import check_rows
from augserve.service.body.images import decode_image
from augserve.service.schemas import shorten
from augserve.service.settings import DEFAULT_MAX_IMAGE_PIXELS


@dataclass(frozen=True)
class Limits:
    """The most rows in a request and the most pixels in an image."""

    max_rows: int = 4096
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS


def read_instances(
    instances: object,
    manifest: Manifest,
    limits: Limits,
    check: Callable[[], None] = lambda: None,
) -> npt.NDArray[np.float32]:
    """Turn the instances of a JSON body into rows.

    Args:
        instances: a list of N rows: nested numbers C x H x W (already preprocessed), or {"b64": "..."}.
        manifest: the model's shape and preprocessing.
        limits: the most rows and pixels.
        check: called before each image; raises when there is no time left.

    Returns:
        float32 (N, C, H, W), finite.

    Raises:
        InputError: not a list, empty, ragged, of another shape, not numbers, not base64, or not finite.
        PayloadTooLargeError: too many rows or pixels.
        MediaTypeError: a b64 instance that is not an image.

    Example:
        >>> read_instances([[[[0.0, 1.0]]]], manifest, Limits()).shape
        (1, 1, 1, 2)
    """
    if not isinstance(instances, list):
        raise InputError(f"expected instances as a list of rows; got {shorten(instances)}")
    _check_count(len(instances), limits)
    numeric = [i for i, row in enumerate(instances) if not isinstance(row, dict)]
    if len(numeric) == len(instances):
        return check_rows(_numbers(instances), manifest)
    rows = np.empty((len(instances), *manifest.shape), np.float32)
    if numeric:
        rows[numeric] = check_rows(_numbers([instances[i] for i in numeric]), manifest)
    for i, row in enumerate(instances):
        if isinstance(row, dict):
            check()
            with _naming(i):
                rows[i] = _image(_encoded(row), manifest, limits)
    return rows


def check_instances(
    rows: npt.NDArray[np.generic], manifest: Manifest, limits: Limits, check: Callable[[], None] = lambda: None
) -> npt.NDArray[np.float32]:
    """Return rows that came as an array, float32 (N, C, H, W); arguments and errors as in `read_instances`."""
    if rows.ndim:
        _check_count(len(rows), limits)
    return check_rows(rows, manifest)


def read_images(
    images: Sequence[bytes], manifest: Manifest, limits: Limits, check: Callable[[], None] = lambda: None
) -> npt.NDArray[np.float32]:
    """Turn encoded images into rows, float32 (N, C, H, W); arguments and errors as in `read_instances`."""
    _check_count(len(images), limits)
    rows = np.empty((len(images), *manifest.shape), np.float32)
    for i, data in enumerate(images):
        check()
        with _naming(i):
            rows[i] = _image(data, manifest, limits)
    return rows


def _check_count(n: int, limits: Limits) -> None:
    if n == 0:
        raise InputError("expected at least 1 row; got none")
    if n > limits.max_rows:
        raise PayloadTooLargeError(f"expected at most {limits.max_rows} rows; got {n}; send several requests")


def _numbers(rows: list[Any]) -> npt.NDArray[np.float64]:
    """Return nested lists as an array, after seeing that all are equally long and hold numbers only."""
    shape: list[int] = []
    level: list[Any] = [rows]
    while True:
        kinds = set(map(type, level))
        if kinds <= {int, float}:
            return np.array(level, dtype=np.float64).reshape(shape)
        strange = kinds - {list, int, float}
        if strange:
            names = ", ".join(sorted(kind.__name__ for kind in strange))
            raise InputError(f'expected rows of nested numbers or {{"b64": "..."}}; got values of type {names}')
        lengths = set(map(len, level)) if kinds == {list} else set()
        if len(lengths) != 1:
            raise InputError("expected rows of equal shape; got lists of different lengths")
        shape += lengths
        level = list(chain.from_iterable(level))


def _encoded(instance: dict[str, Any]) -> bytes:
    """Return the bytes of a {"b64": "..."} instance; line breaks in the base64 text are fine."""
    text = instance.get("b64")
    if list(instance) != ["b64"] or not isinstance(text, str):
        fields = ", ".join(shorten(name, 40) for name in list(instance)[:5]) or "no field"
        raise InputError(f'expected nested numbers or {{"b64": "text"}}; got an object with {fields}')
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"expected base64 in b64; got {shorten(text, 40)}") from None


def _image(data: bytes, manifest: Manifest, limits: Limits) -> npt.NDArray[np.float32]:
    if manifest.preprocessing is None:
        raise InputError("this model's file does not say how to preprocess images; send rows of numbers")
    return decode_image(data, manifest.preprocessing, limits.max_image_pixels)


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """Name the row in an error about it."""
    try:
        yield
    except AugserveError as error:
        raise type(error)(f"row {index}: {error}") from None
