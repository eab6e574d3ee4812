"""What a client is told: the answer's JSON, or the server's own words as an error."""

from __future__ import annotations

from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson

from augserve.errors import RemoteError


class RefusedError(RemoteError):
    """The server answered, but with a refusal.

    Args:
        message: the address, the status and the server's own words.
        status: of HTTP, such as 429.
        code: the server's name for the refusal, such as "queue_full"; None where it gave none.
        retry_after_s: seconds after which the server asks to be tried again; None where it does not.
    """

    def __init__(self, message: str, status: int, code: str | None, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


def read_answer(
    url: str, response: httpx.Response, wanted: str, retry_after_s: float | None = None, tries: int = 1
) -> dict[str, Any]:
    """Return the JSON object of a whole response.

    Args:
        url: the server's address, for the errors.
        response: read to its end.
        wanted: a field that the answer must hold.
        retry_after_s: what its Retry-After header says.
        tries: how often the server was asked.

    Returns:
        The object.

    Raises:
        RefusedError: a status other than 200, with the server's own words.
        RemoteError: an answer that no augserve server gives.
    """
    try:
        answer = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        answer = None
    status = response.status_code
    if status == 200 and isinstance(answer, dict) and wanted in answer:
        return answer
    if status == 200:
        raise RemoteError(f"expected JSON with {wanted!r} from {url}; got other content: is it an augserve server?")
    told = answer if isinstance(answer, dict) else {}
    reason = " ".join(str(told.get("error") or response.text[:200]).split()) or "no reason given"
    code = told.get("code")
    often = f" (tried {tries} times)" if tries > 1 else ""
    raise RefusedError(
        f"{url} answered {status}: {reason}{often}", status, code if isinstance(code, str) else None, retry_after_s
    )


def parse_retry_after(text: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for, given as a number or as an HTTP date.

    Args:
        text: the header's value; None where there is none.
        now: seconds since 1970, for a date.

    Returns:
        Seconds, at least 0; None where the header is missing or makes no sense.

    Example:
        >>> parse_retry_after("2", 0.0), parse_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 50.0)
        (2.0, 10.0)
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:  # "-0000", and dates without a zone: HTTP knows no other than GMT
            date = date.replace(tzinfo=timezone.utc)
        return max(0.0, date.timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
