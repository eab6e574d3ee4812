"""From a request body to rows and settings: read once and capped; JSON, a form, or an array in NumPy's format."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import anyio.to_thread
import numpy as np
import numpy.typing as npt
import orjson
from starlette.requests import Request
from starlette.types import Receive

from augserve.errors import (
    ConfigurationError,
    InputError,
    MalformedRequestError,
    MediaTypeError,
    PayloadTooLargeError,
)
from augserve.manifest import Manifest
from augserve.service.body.compression import decompress
from augserve.service.body.multipart import split_parts
from augserve.service.body.number_lists import MAX_FRAME, members_of, split_numbers
from augserve.service.body.rows import Limits, check_instances, read_images, read_instances
from augserve.service.queue.deadlines import Deadline, Deadlines
from augserve.service.schemas import FIELDS, PredictSettings, parse_settings, shorten

JSON, FORM, NPY = "application/json", "multipart/form-data", "application/octet-stream"
QUERY_FIELDS = ("tracked_weight", "prior", *FIELDS)
JSON_FIELDS = ("instances", *FIELDS)
FORM_FIELDS = ("file", *QUERY_FIELDS)
INLINE_BYTES = {JSON: 2**17, NPY: 2**19}  # parsed within a millisecond: handing over would take as long


class ParsedBody(NamedTuple):
    """Checked settings, and what makes the rows, float32 (N, C, H, W), once the model serves them.

    images: whether it has images to decode, which takes time.
    """

    settings: PredictSettings
    make_rows: Callable[[Manifest, Limits, Callable[[], None]], npt.NDArray[np.float32]]
    images: bool = False


def media_type_of(content_type: str) -> str:
    """Return the media type of a Content-Type header: application/json, multipart/form-data or ../octet-stream.

    Raises:
        MediaTypeError: another one.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in (JSON, FORM, NPY):
        raise MediaTypeError(f"expected Content-Type {JSON}, {FORM} or {NPY}; got {media_type[:80] or 'none'}")
    return media_type


def header_of(request: Request, name: bytes) -> str:
    """Return a header by its lower-case name, empty where there is none."""
    for key, value in request.scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return ""


def check_length(request: Request, max_bytes: int) -> None:
    """Refuse a body whose announced length is over the limit.

    Raises:
        PayloadTooLargeError: it is.
    """
    length = header_of(request, b"content-length")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


async def read_body(request: Request, max_bytes: int, deadline: Deadline, deadlines: Deadlines) -> bytes:
    """Read the whole body, whether its length was announced or not, and undo its Content-Encoding.

    Args:
        request: whose body was not read yet.
        max_bytes: the most bytes, as sent and decompressed.
        deadline: until when it must be there.
        deadlines: watch over it.

    Raises:
        PayloadTooLargeError: more bytes than allowed, as sent or decompressed.
        DeadlineError: the body did not arrive in time.
        MalformedRequestError: the sender went away, or damaged compressed data.
        MediaTypeError: an encoding that is not gzip or deflate.
    """
    reading = _Reading()
    token = deadlines.watch(deadline, reading.expire)
    try:
        body = await _whole(request.receive, max_bytes)
    except asyncio.CancelledError:
        if not reading.ended():
            raise
        raise deadline.error("the body had not arrived") from None
    finally:
        deadlines.forget(token)
    encoding = header_of(request, b"content-encoding")
    return await anyio.to_thread.run_sync(decompress, body, encoding, max_bytes) if encoding else body


async def _whole(receive: Receive, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise MalformedRequestError("expected the whole body; the sender went away")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class _Reading:
    """A task that reads, and whether its deadline has ended that."""

    __slots__ = ("_expired", "_task")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._expired = False

    def expire(self) -> None:
        self._expired = self._task is not None and self._task.cancel()

    def ended(self) -> bool:
        """Whether the deadline was what cancelled the task; which then goes on."""
        if self._expired and self._task is not None and sys.version_info >= (3, 11):
            return self._task.uncancel() == 0  # else somebody else has cancelled it too
        return self._expired


def parse(body: bytes, content_type: str, query: Iterable[tuple[str, str]]) -> ParsedBody:
    """Parse a body of any of the three types; the query holds the settings of an array.

    Raises:
        AugserveError: as the parser of its type.
    """
    media_type = media_type_of(content_type)
    if media_type == NPY:
        return parse_npy(body, query)
    for name, _ in query:
        raise ConfigurationError(f"expected settings in the body; got {shorten(name)} in the address")
    return parse_json(body) if media_type == JSON else parse_form(body, content_type)


def parse_json(body: bytes) -> ParsedBody:
    """Parse {"instances": [...], settings...}.

    Raises:
        MalformedRequestError: not JSON (NaN and Infinity are not), or nested too deep.
        InputError: not an object, or one without instances.
        ConfigurationError: an unknown or invalid setting.
    """
    split = split_numbers(body)
    if split is not None:
        settings = (_settings_in if len(split.frame) <= MAX_FRAME else _settings_in.__wrapped__)(split.frame)
        return ParsedBody(settings, lambda *how: check_instances(split.values, *how))
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequestError(f"expected a JSON body; {str(error)[:150]}") from None
    if not isinstance(data, dict):
        raise InputError(f'expected an object with "instances"; got {shorten(data)}')
    instances = data.pop("instances", None)
    settings = parse_settings(data, known=JSON_FIELDS, strict=True)
    if instances is None:
        raise InputError('expected "instances", a list of rows; got none')
    images = isinstance(instances, list) and any(isinstance(row, dict) for row in instances)
    return ParsedBody(settings, lambda *how: read_instances(instances, *how), images)


@lru_cache(maxsize=256)
def _settings_in(frame: bytes) -> PredictSettings:
    return parse_settings(dict(members_of(frame) or {}), known=JSON_FIELDS, strict=True)


def parse_form(body: bytes, content_type: str) -> ParsedBody:
    """Parse a form: images in fields `file`, settings as text; blend as tracked_weight, prior or JSON.

    Raises:
        MalformedRequestError: not a form, or a setting that is not text.
        InputError: no file.
        ConfigurationError: an unknown, repeated or invalid setting.
    """
    images: list[bytes] = []
    fields: dict[str, list[str]] = {}
    for name, content in split_parts(body, content_type):
        if name == "file":
            images.append(content)
            continue
        if name not in FORM_FIELDS:
            raise ConfigurationError(f"unknown field {shorten(name)}; the fields are: {', '.join(FORM_FIELDS)}")
        try:
            fields.setdefault(name, []).append(content.decode("utf-8"))
        except UnicodeDecodeError:
            raise MalformedRequestError(f"expected field {name} as UTF-8 text; got other bytes") from None
    settings = parse_settings(_settings_of(fields), known=FORM_FIELDS, strict=False)
    if not images:
        raise InputError("expected at least one image in a field named file; got none")
    return ParsedBody(settings, lambda *how: read_images(images, *how), images=True)


def parse_npy(body: bytes, query: Iterable[tuple[str, str]]) -> ParsedBody:
    """Parse an array of rows in NumPy's .npy format, with settings in the query, as text as in a form.

    Raises:
        MalformedRequestError: not such a file, or a damaged one.
        ConfigurationError: an unknown, repeated or invalid setting.
    """
    fields: dict[str, list[str]] = {}
    for name, value in query:
        if name not in QUERY_FIELDS:
            raise ConfigurationError(
                f"unknown setting {shorten(name)}; the settings are: {', '.join(QUERY_FIELDS)}"
            )
        fields.setdefault(name, []).append(value)
    settings = parse_settings(_settings_of(fields), known=QUERY_FIELDS, strict=False)
    rows = _read_npy(body)

    return ParsedBody(settings, lambda *how: check_instances(rows, *how))


def _read_npy(body: bytes) -> npt.NDArray[np.generic]:
    """Return the array of a .npy file; its values stay where they are."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, by_column, dtype = read_header(file)
        if dtype.kind not in "fiub":
            raise InputError(f"expected rows of numbers; got values of type {dtype}")  # noqa: TRY301
        values = np.frombuffer(body, dtype, offset=file.tell())
        return values.reshape(shape, order="F" if by_column else "C")
    except InputError:
        raise
    except Exception as error:  # NumPy's reader raises whatever its parsers do
        raise MalformedRequestError(f"expected an array in NumPy's .npy format; {str(error)[:150]}") from None


def _settings_of(fields: dict[str, list[str]]) -> dict[str, Any]:
    """Return form fields in the shape of the JSON settings."""
    data: dict[str, Any] = {}
    if "return" in fields:
        parts = ",".join(fields.pop("return")).split(",")
        data["return"] = [part.strip() for part in parts if part.strip()]
    for name, values in fields.items():
        if len(values) > 1:
            raise ConfigurationError(f"expected field {name} once; got it {len(values)} times")
        data[name] = values[0]
    weights = {name: data.pop(name) for name in ("tracked_weight", "prior") if name in data}
    if "blend" in data:
        if weights:
            raise ConfigurationError(f"expected blend or {next(iter(weights))}; got both: leave one of them out")
        try:
            data["blend"] = orjson.loads(data["blend"])
        except orjson.JSONDecodeError:
            raise ConfigurationError(f"expected blend as a JSON object; got {shorten(data['blend'])}") from None
    elif weights:
        data["blend"] = weights
    return data


def _too_large(max_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"expected a body of at most {max_bytes} bytes; got more; send several requests")
