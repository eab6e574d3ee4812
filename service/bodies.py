"""From a request body to rows and settings: read once and capped, parsed by orjson or as a form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from starlette.requests import ClientDisconnect, Request

from augserve.errors import (
    ConfigurationError,
    InputError,
    MalformedRequestError,
    MediaTypeError,
    PayloadTooLargeError,
)
from augserve.manifest import Manifest
from augserve.service.multipart import split_parts
from augserve.service.rows import Limits, read_images, read_instances
from augserve.service.scheduler import Deadline
from augserve.service.schemas import FIELDS, PredictSettings, parse_settings, shorten

JSON_FIELDS = ("instances", *FIELDS)
FORM_FIELDS = ("file", "tracked_weight", "prior", *FIELDS)


class ParsedBody(NamedTuple):
    """Checked settings, and what makes the rows, float32 (N, C, H, W), once the model serves them."""

    settings: PredictSettings
    make_rows: Callable[[Manifest, Limits, Callable[[], None]], npt.NDArray[np.float32]]


def check_headers(request: Request, max_bytes: int) -> str:
    """Return the body's media type, one of application/json and multipart/form-data.

    Raises:
        MediaTypeError: another media type, or a compressed body.
        PayloadTooLargeError: a Content-Length over the limit.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("application/json", "multipart/form-data"):
        raise MediaTypeError(
            "expected Content-Type application/json or multipart/form-data; got " + (media_type[:80] or "none")
        )
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise MediaTypeError(f"expected a body without Content-Encoding; got {encoding[:80]}")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)
    return media_type


async def read_body(request: Request, max_bytes: int, deadline: Deadline) -> bytes:
    """Read the whole body, whether its length was announced or not.

    Raises:
        PayloadTooLargeError: more bytes than allowed.
        DeadlineError: the body did not arrive in time.
        MalformedRequestError: the sender went away.
    """

    async def read() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), deadline.remaining())
    except asyncio.TimeoutError:
        raise deadline.error("the body had not arrived") from None
    except ClientDisconnect:
        raise MalformedRequestError("expected the whole body; the sender went away") from None


def parse_json(body: bytes) -> ParsedBody:
    """Parse {"instances": [...], settings...}.

    Raises:
        MalformedRequestError: not JSON (NaN and Infinity are not), or nested too deep.
        InputError: not an object, or one without instances.
        ConfigurationError: an unknown or invalid setting.
    """
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
    return ParsedBody(settings, lambda *how: read_instances(instances, *how))


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
    return ParsedBody(settings, lambda *how: read_images(images, *how))


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
