"""Clients of an augserve server, for threads and for asyncio: the same questions, answers and patience."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx

from augserve.client.answers import RefusedError
from augserve.client.bodies import Encoding, Given, Image, is_small, predict_body
from augserve.client.retries import Limits, Sources, Tries, unreachable
from augserve.errors import ConfigurationError

__all__ = ["AsyncClient", "Client", "Encoding", "Image", "RefusedError"]

API_KEY = "AUGSERVE_API_KEY"


class Client:
    """A connection to one server, which threads may share; close it, or use it as a context manager.

    It tries again, with growing random pauses, when the server is full (429), not ready (503), or the connection is
    refused or reset before an answer began. That is safe: a prediction changes nothing, whoever asks twice.

    Args:
        url: the server's address, such as "http://127.0.0.1:8000".
        timeout_s: seconds of silence after which a try is given up.
        retries: tries after the first; 0 tries once.
        total_s: seconds within which the last try must begin; a longer Retry-After is not waited for.
        api_key: sent as `Authorization: Bearer KEY`; None takes AUGSERVE_API_KEY, "" sends none.
        transport: of httpx, for tests and proxies.
        sources: of time and chance, for tests.
        sleep: waits a number of seconds, for tests.

    Raises:
        ConfigurationError: a limit below its least value, a key that no header can hold, or no address.

    Example:
        >>> with Client("http://127.0.0.1:8000") as client:
        ...     answer = client.predict(["cat.png", "dog.png"], tracking=False)
        >>> answer["predictions"][0]["label"]
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        retries: int = 5,
        total_s: float = 120.0,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
        sources: Sources | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._limits = Limits(timeout_s, retries, total_s)
        self._sources = sources or Sources()
        self._sleep = sleep
        self._http = httpx.Client(transport=transport, **_connection(self.url, api_key, self._limits))

    def predict(
        self,
        rows_or_images: Given,
        batch_size: int | None = None,
        tracking: bool | None = True,
        blend: Mapping[str, float] | None = None,
        *,
        remainder: str = "own",
        top_k: int | None = None,
        returns: Sequence[str] = ("label", "probabilities"),
        model: str | None = None,
        compare: bool = False,
        encoding: Encoding = "json",
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
            model: a model's name, where the server has several.
            compare: also the tracked prediction of each row, and how far the two disagree.
            encoding: how rows travel: json, or npy (quicker for many). Images are always sent as a form.

        Returns:
            The server's answer: predictions, model, statistics, warnings, timing_ms.

        Raises:
            InputError: rows that are not finite numbers, or a path that cannot be read.
            ConfigurationError: an unknown encoding, or a blend that is none.
            RefusedError: the server refuses; its own words, `status`, `code` and `retry_after_s`.
            RemoteError: the server cannot be reached, or breaks off.
        """
        settings = _settings(batch_size, tracking, blend, remainder, top_k, returns, model, compare)
        return self._ask("POST", "/predict", "statistics", predict_body(rows_or_images, settings, encoding))

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models: name, version, state (READY, LOADING, UNAVAILABLE) and reason of each."""
        return list(self._ask("GET", "/models", "models", {})["models"])

    def ready(self) -> bool:
        """Tell whether the server takes requests now; one that does not answer takes none. Asks once."""
        try:
            return self._http.get(self.url + "/readyz").status_code == 200
        except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.TimeoutException):
            return False
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise unreachable(self.url, error) from None

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, path: str, wanted: str, body: Mapping[str, Any]) -> dict[str, Any]:
        tries = Tries(self.url, self._limits, self._sources)
        while True:
            timeout = tries.begin()
            try:
                request = self._http.build_request(method, self.url + path, timeout=timeout, **body)
                response = self._http.send(request, stream=True)
            except (httpx.RequestError, httpx.InvalidURL) as error:
                self._sleep(tries.after_error(error))
                continue
            try:
                response.read()
            except httpx.RequestError as error:
                raise tries.broken_off(error) from None
            finally:
                response.close()
            wait = tries.after_answer(response)
            if wait is None:
                return tries.read(response, wanted)
            self._sleep(wait)


class AsyncClient:
    """`Client` for asyncio: the same arguments and answers; close it, or use it as an asynchronous context manager.

    Example:
        >>> async with AsyncClient("http://127.0.0.1:8000") as client:
        ...     answers = await asyncio.gather(*(client.predict(rows) for rows in batches))
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        retries: int = 5,
        total_s: float = 120.0,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sources: Sources | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._limits = Limits(timeout_s, retries, total_s)
        self._sources = sources or Sources()
        self._sleep = sleep
        self._http = httpx.AsyncClient(transport=transport, **_connection(self.url, api_key, self._limits))

    async def predict(
        self,
        rows_or_images: Given,
        batch_size: int | None = None,
        tracking: bool | None = True,
        blend: Mapping[str, float] | None = None,
        *,
        remainder: str = "own",
        top_k: int | None = None,
        returns: Sequence[str] = ("label", "probabilities"),
        model: str | None = None,
        compare: bool = False,
        encoding: Encoding = "json",
    ) -> dict[str, Any]:
        """Predict rows or images; see `Client.predict`. Files are read and large bodies built in a thread."""
        settings = _settings(batch_size, tracking, blend, remainder, top_k, returns, model, compare)
        if is_small(rows_or_images):
            body = predict_body(rows_or_images, settings, encoding)
        else:
            body = await asyncio.to_thread(predict_body, rows_or_images, settings, encoding)
        return await self._ask("POST", "/predict", "statistics", body)

    async def models(self) -> list[dict[str, Any]]:
        """Return the server's models; see `Client.models`."""
        return list((await self._ask("GET", "/models", "models", {}))["models"])

    async def ready(self) -> bool:
        """Tell whether the server takes requests now; see `Client.ready`."""
        try:
            return (await self._http.get(self.url + "/readyz")).status_code == 200
        except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.TimeoutException):
            return False
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise unreachable(self.url, error) from None

    async def aclose(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ask(self, method: str, path: str, wanted: str, body: Mapping[str, Any]) -> dict[str, Any]:
        tries = Tries(self.url, self._limits, self._sources)
        while True:
            timeout = tries.begin()
            try:
                request = self._http.build_request(method, self.url + path, timeout=timeout, **body)
                response = await self._http.send(request, stream=True)
            except (httpx.RequestError, httpx.InvalidURL) as error:
                await self._sleep(tries.after_error(error))
                continue
            try:
                await response.aread()
            except httpx.RequestError as error:
                raise tries.broken_off(error) from None
            finally:
                await response.aclose()
            wait = tries.after_answer(response)
            if wait is None:
                return tries.read(response, wanted)
            await self._sleep(wait)


def _settings(
    batch_size: int | None,
    tracking: bool | None,
    blend: Mapping[str, float] | None,
    remainder: str,
    top_k: int | None,
    returns: Sequence[str],
    model: str | None,
    compare: bool,
) -> dict[str, Any]:
    """Return the settings of a request under the names of its JSON body; None is not sent."""
    return {
        "model": model,
        "batch_size": batch_size,
        "tracking": tracking if blend is None else None,
        "blend": dict(blend) if blend is not None else None,
        "remainder": remainder,
        "top_k": top_k,
        "return": list(returns),
        "compare": compare or None,
    }


def _connection(url: str, api_key: str | None, limits: Limits) -> dict[str, Any]:
    """Return what both clients of httpx are made with."""
    key = os.environ.get(API_KEY, "") if api_key is None else api_key
    if not all("!" <= sign <= "~" for sign in key):  # never shown: it is a secret
        raise ConfigurationError(f"expected an API key of printable ASCII without spaces; see {API_KEY}")
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"expected an address such as http://127.0.0.1:8000; got {error}") from None
    return {
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": limits.timeout_s,
        "limits": httpx.Limits(max_connections=100, max_keepalive_connections=100),
        # A proxy of the environment is for other machines: this one is asked directly.
        "trust_env": host not in ("localhost", "127.0.0.1", "::1"),
    }
