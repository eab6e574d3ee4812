"""A small client of an augserve server: rows go as JSON, images as a form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import orjson

from augserve.errors import InputError, RemoteError

Image = str | Path | bytes


class Client:
    """A connection to one server; close it, or use it as a context manager.

    Args:
        url: the server's address, such as "http://127.0.0.1:8000".
        timeout_s: seconds to wait for any one answer.

    Example:
        >>> with Client("http://127.0.0.1:8000") as client:
        ...     answer = client.predict(["cat.png", "dog.png"], tracking=False)
        >>> answer["predictions"][0]["label"]
    """

    def __init__(self, url: str, *, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        # A proxy of the environment is for other machines: this one is asked directly.
        here = httpx.URL(self.url).host in ("localhost", "127.0.0.1", "::1")
        self._http = httpx.Client(timeout=timeout_s, trust_env=not here)

    def predict(
        self,
        rows_or_images: npt.ArrayLike | Image | Sequence[Image],
        batch_size: int | None = None,
        tracking: bool | None = True,
        blend: Mapping[str, float] | None = None,
        *,
        remainder: str = "own",
        top_k: int | None = None,
        returns: Sequence[str] = ("label", "probabilities"),
    ) -> dict[str, Any]:
        """Predict rows or images.

        Args:
            rows_or_images: rows (N, C, H, W) as an array or nested lists, already preprocessed; or images as
                paths or the bytes of PNG, JPEG or WebP files, which the server preprocesses.
            batch_size: rows in a statistics group; None puts all rows into one.
            tracking: True for tracked statistics, False for the group's own, None for the model's default.
            blend: {"tracked_weight": lambda} or {"prior": rows}; takes the place of tracking.
            remainder: own, merge, drop or error, for the last rows that fill no group.
            top_k: also the k most probable classes of each row.
            returns: any of label, probabilities, logits.

        Returns:
            The server's answer: predictions, model, statistics, warnings, timing_ms.

        Raises:
            InputError: rows that are not finite numbers, or a path that cannot be read.
            RemoteError: the server cannot be reached, or refuses; then its own words.
        """
        settings: dict[str, Any] = {
            "batch_size": batch_size,
            "tracking": tracking if blend is None else None,
            "blend": dict(blend) if blend is not None else None,
            "remainder": remainder,
            "top_k": top_k,
            "return": list(returns),
        }
        settings = {name: value for name, value in settings.items() if value is not None}
        images = _images_of(rows_or_images)
        if images is None:
            body = {"instances": _finite_rows(rows_or_images), **settings}
            content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
            return self._post(content=content, headers={"Content-Type": "application/json"})
        form = {name: value if name == "return" else _text(value) for name, value in settings.items()}
        return self._post(data=form, files=[("file", ("image", _read(image))) for image in images])

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _post(self, **request: Any) -> dict[str, Any]:
        try:
            response = self._http.post(f"{self.url}/predict", **request)
        except httpx.TimeoutException:
            raise RemoteError(f"{self.url} did not answer in time; wait longer or send fewer rows") from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            reason = str(error).strip() or type(error).__name__
            raise RemoteError(
                f"could not reach {self.url} ({reason}); is `augserve serve` running there?"
            ) from None
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            answer = None
        if response.status_code != 200 or not isinstance(answer, dict):
            refused = answer if isinstance(answer, dict) else {}
            reason = refused.get("error") or response.text[:200] or "no reason given"
            raise RemoteError(f"{self.url} answered {response.status_code}: {reason}")
        return answer


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
    if not np.isfinite(array).all():  # JSON has no word for NaN or inf
        raise InputError("expected finite float32 numbers; the rows hold NaN or inf")
    return array


def _read(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise InputError(f"{image}: expected an image file; {error.strerror}") from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode("utf-8")
