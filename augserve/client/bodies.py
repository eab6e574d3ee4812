"""What a client sends: rows as JSON or .npy, images as a form; pure functions, the same for both clients."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from augserve.errors import ConfigurationError, InputError, unknown_choice

Image: TypeAlias = "str | Path | bytes"
Given: TypeAlias = "npt.ArrayLike | Image | Sequence[Image]"
Encoding = Literal["json", "npy"]

ENCODINGS = ("json", "npy")
BLENDS = ("tracked_weight", "prior")
SMALL_BYTES = 2**16


def is_small(given: Given) -> bool:
    """Tell whether a body is built so quickly that an event loop may do it: a small array, no file to read."""
    return isinstance(given, np.ndarray) and given.nbytes <= SMALL_BYTES


def predict_body(given: Given, settings: Mapping[str, Any], encoding: str = "json") -> dict[str, Any]:
    """Return the body of one POST /predict.

    Args:
        given: rows (N, C, H, W) as an array or nested lists; or images as paths or the bytes of files.
        settings: the request's settings as the JSON body names them; one that is None is not sent.
        encoding: of rows: json, or npy with the settings in the query. Images are always a form.

    Returns:
        Keyword arguments for `httpx.Client.build_request`.

    Raises:
        InputError: rows that are not finite numbers, or a path that cannot be read.
        ConfigurationError: an unknown encoding, or a blend that is none.

    Example:
        >>> predict_body([[1.0]], {"tracking": False, "top_k": None})["content"]
        b'{"instances":[[1.0]],"tracking":false}'
    """
    if encoding not in ENCODINGS:
        raise unknown_choice("encoding", encoding, ENCODINGS)
    settings = {name: value for name, value in settings.items() if value is not None}
    blend = settings.get("blend")
    if blend is not None and (not blend or set(blend) - set(BLENDS)):
        raise ConfigurationError(f"expected a blend of one of: {', '.join(BLENDS)}; got {dict(blend)!r:.80}")
    images = _images_of(given)
    if images is not None:
        files = [("file", ("image", _read(image))) for image in images]
        return {"data": _as_text(settings, "blend"), "files": files}
    rows = _finite_rows(given)
    if encoding == "npy":
        blended = settings.pop("blend", {})
        params = _as_text(settings | blended)
        params |= {name: ",".join(value) for name, value in params.items() if isinstance(value, list)}
        return {"content": _npy(rows), "headers": {"Content-Type": "application/octet-stream"}, "params": params}
    content = orjson.dumps({"instances": rows, **settings}, option=orjson.OPT_SERIALIZE_NUMPY)
    return {"content": content, "headers": {"Content-Type": "application/json"}}


def _as_text(settings: Mapping[str, Any], *json: str) -> dict[str, Any]:
    """Return settings as form fields or a query take them; lists stay lists: a field each."""
    return {
        name: value if isinstance(value, (str, list)) and name not in json else orjson.dumps(value).decode("utf-8")
        for name, value in settings.items()
    }


def _npy(rows: npt.NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=False)
    return file.getvalue()


def _images_of(given: Any) -> list[Image] | None:
    """Return paths and bytes as a list, None for anything that is rows."""
    if isinstance(given, (str, Path, bytes)):
        return [given]
    if isinstance(given, (list, tuple)) and given and all(isinstance(one, (str, Path, bytes)) for one in given):
        return list(given)
    return None


def _finite_rows(rows: Any) -> npt.NDArray[np.float32]:
    try:
        array = np.asarray(rows)
    except ValueError:
        raise InputError("expected rows of equal shape; got rows of different shapes") from None
    if array.dtype.kind not in "fiu" or array.ndim == 0:
        raise InputError(f"expected rows of numbers, or paths and bytes of images; got {array.dtype} values")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():  # JSON has no word for NaN or inf, and no server takes them in any form
        raise InputError("expected finite float32 numbers; the rows hold NaN or inf")
    return array


def _read(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise InputError(f"{image}: expected an image file; {error.strerror}") from None
