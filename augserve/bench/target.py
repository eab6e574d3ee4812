"""The server that a load is put on: one that runs, or one started from a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from augserve.bench.server_process import HOST, ServerProcess
from augserve.bench.traffic import Request
from augserve.bench.wire import address_of, request_bytes
from augserve.errors import ConfigurationError, RemoteError

_METRIC = re.compile(r"^augserve_rows_per_run_(sum|count)(?:\{[^}]*\})? (\S+)", re.MULTILINE)


class Target:
    """A server at a URL.

    Args:
        url: http://HOST:PORT.
        headers: of every request.
        process: the server, where it was started here; `close` stops it.

    Raises:
        ConfigurationError: another kind of URL.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, process: ServerProcess | None = None
    ) -> None:
        address_of(url)
        self.url = url.rstrip("/")
        self.process = process
        self._headers = dict(headers or {})
        self._http = httpx.Client(trust_env=False, timeout=30, headers=self._headers)

    @classmethod
    def start(
        cls, model: str | Path, headers: Mapping[str, str] | None = None, threads: int | None = None
    ) -> Target:
        """Serve a file on a free loopback port, with the settings of the environment.

        Raises:
            ConfigurationError: the server stopped before it was ready.
        """
        command = [sys.executable, "-m", "augserve", "serve", str(model), "--host", HOST, "--port", "{port}"]
        process = ServerProcess(command + ([] if threads is None else ["--threads", str(threads)]))
        return cls(process.url, headers, process)

    def close(self) -> None:
        """Stop the server, if it was started here."""
        self._http.close()
        if self.process is not None:
            self.process.stop()

    def ask_shape(self) -> list[int]:
        """Return the shape of a row as the server tells it (Open Inference Protocol)."""
        try:
            name = self._http.get(f"{self.url}/readyz").json()["model"]
            inputs = self._http.get(f"{self.url}/v2/models/{name}").json()["inputs"]
            return [int(size) for size in inputs[0]["shape"][1:]]
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        except (ValueError, LookupError, TypeError):
            raise ConfigurationError(f"{self.url} does not tell the shape of a row; give --shape") from None

    def prepare(self, requests: Sequence[Request]) -> list[bytes]:
        """Return the bytes of requests, once the server has answered each of them with 200.

        Raises:
            RemoteError: it cannot be reached, or refuses one; then its own words.
        """
        for path, content_type, body in requests:
            try:
                answer = self._http.post(self.url + path, content=body, headers={"Content-Type": content_type})
            except httpx.TransportError as error:
                raise self._unreachable(error) from None
            if answer.status_code != httpx.codes.OK:
                raise RemoteError(f"{self.url} answered {answer.status_code}: {answer.text[:300]}")
        return [request_bytes(self.url, path, body, kind, self._headers.items()) for path, kind, body in requests]

    def runs(self) -> tuple[float, float]:
        """Return how many rows the server has run, and in how many runs; zeros where its /metrics do not tell."""
        totals = {"sum": 0.0, "count": 0.0}
        answer = self._http.get(f"{self.url}/metrics")
        for kind, value in _METRIC.findall(answer.text if answer.status_code == httpx.codes.OK else ""):
            totals[kind] += float(value)
        return totals["sum"], totals["count"]

    def _unreachable(self, error: httpx.TransportError) -> RemoteError:
        return RemoteError(f"could not reach {self.url} ({error}); is a server running there?")
