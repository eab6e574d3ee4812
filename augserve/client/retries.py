"""When a client tries again: exponential back-off with full jitter, bounded in number and in time.

Tried again are 429 and 503, and connections refused, reset or closed before an answer began. That is safe: a
prediction changes nothing on the server and depends on its request alone, so POST /predict is idempotent. An answer
that breaks off halfway, a time-out and every other status are errors at once.
Source: "full jitter" is the name of Brooker (2015), "Exponential Backoff And Jitter".
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import httpx

from augserve.client.answers import parse_retry_after, read_answer
from augserve.errors import ConfigurationError, RemoteError

TRIED_AGAIN = frozenset({429, 503})
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 10.0
LONGEST_RETRY_AFTER_S = 30.0


class Sources(NamedTuple):
    """Where time and chance come from: seconds that only grow, seconds since 1970, uniform numbers in [0, 1)."""

    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random


@dataclass(frozen=True)
class Limits:
    """How long a client is patient.

    Args:
        timeout_s: seconds of silence in one try.
        retries: tries after the first.
        total_s: seconds within which the last try must begin.

    Raises:
        ConfigurationError: a limit below its least value.
    """

    timeout_s: float = 60.0
    retries: int = 5
    total_s: float = 120.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value >= 0 if field.name == "retries" else value > 0):
                least = "at least 0" if field.name == "retries" else "above 0"
                raise ConfigurationError(f"expected {field.name} {least}; got {value!r}")


def wait_s(retry: int, retry_after_s: float | None, chance: float) -> float:
    """Return the seconds before a retry: r + u min(10, 0.25 · 2^k).

    Args:
        retry: k, from 0.
        retry_after_s: r, what the server asked for, capped at 30; None means 0.
        chance: u, uniform in [0, 1).

    Example:
        >>> wait_s(2, None, 0.5), wait_s(0, 3.0, 0.0), wait_s(0, 3600.0, 0.0), wait_s(99, None, 1.0)
        (0.5, 3.0, 30.0, 10.0)
    """
    asked = min(retry_after_s or 0.0, LONGEST_RETRY_AFTER_S)
    return asked + chance * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(retry, 60))


class Tries:
    """The tries of one request; it neither sends nor sleeps, so both clients use it."""

    def __init__(self, url: str, limits: Limits, sources: Sources) -> None:
        self._url = url
        self._limits = limits
        self._sources = sources
        self._end = sources.clock() + limits.total_s
        self._tries = 0

    def begin(self) -> float:
        """Count a try; return the seconds of silence that it may take."""
        self._tries += 1
        return max(1e-3, min(self._limits.timeout_s, self._end - self._sources.clock()))

    def after_error(self, error: Exception) -> float:
        """Return the seconds to wait before the next try, when no answer began.

        Raises:
            RemoteError: there is no next try.
        """
        # Refused, reset, or closed without a word. The rest is a time-out or a wrong address: no better next time.
        wait = self._wait(None) if isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError)) else None
        if wait is None:
            raise unreachable(self._url, error, self._tries) from None
        return wait

    def after_answer(self, response: httpx.Response) -> float | None:
        """Return the seconds to wait before the next try, None when this response is the answer."""
        if response.status_code not in TRIED_AGAIN:
            return None
        return self._wait(self._retry_after_s(response))

    def read(self, response: httpx.Response, wanted: str) -> dict[str, Any]:
        """Return the answer that a whole response holds, or raise what it says."""
        return read_answer(self._url, response, wanted, self._retry_after_s(response), self._tries)

    def broken_off(self, error: Exception) -> RemoteError:
        """Return the error for an answer that began and did not end."""
        if isinstance(error, httpx.TimeoutException):
            return unreachable(self._url, error)
        return RemoteError(f"{self._url} broke off its answer ({_reason(error)}); its log may say why")

    def _wait(self, retry_after_s: float | None) -> float | None:
        if self._tries > self._limits.retries:
            return None
        wait = wait_s(self._tries - 1, retry_after_s, self._sources.chance())
        return wait if self._sources.clock() + wait < self._end else None

    def _retry_after_s(self, response: httpx.Response) -> float | None:
        return parse_retry_after(response.headers.get("Retry-After"), self._sources.now())


def unreachable(url: str, error: Exception, tries: int = 1) -> RemoteError:
    """Return the error for a server that did not answer at all."""
    often = f" (tried {tries} times)" if tries > 1 else ""
    if isinstance(error, httpx.TimeoutException):
        return RemoteError(f"{url} did not answer in time{often}; wait longer or send fewer rows")
    return RemoteError(f"could not reach {url} ({_reason(error)}){often}; is `augserve serve` running there?")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
