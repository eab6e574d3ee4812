"""API keys: who may ask, and under which name.

Only SHA-256 digests are kept, and every one of them is compared with the digest of what came, so that the time of
an answer tells nothing about a key. A key is in no log line, error or repr; its name is.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from augserve.errors import ConfigurationError, InvalidApiKeyError, MissingApiKeyError
from augserve.service.http.errors import refusal_of

logger = logging.getLogger(__name__)

VARIABLE = "AUGSERVE_API_KEYS"
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
METRICS_PATH = "/metrics"
SHORT = 16  # a key of fewer characters is worth a warning

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_KEY = re.compile(r"[!-~]{1,512}")  # what a header may carry: visible ASCII


class ApiKeys:
    """The keys of one server, as digests, each with its caller's name.

    Args:
        keys: name and key of each; a name may have several keys, a key has one name.

    Raises:
        ConfigurationError: no keys at all, a name or key that cannot be, or a key with two names.

    Example:
        >>> keys = ApiKeys([("alice", "correct-horse-battery")])
        >>> keys.caller_of([(b"authorization", b"Bearer correct-horse-battery")])
        'alice'
    """

    def __init__(self, keys: Iterable[tuple[str, str]]) -> None:
        names: dict[bytes, str] = {}
        for name, key in keys:
            if not _NAME.fullmatch(name):
                raise ConfigurationError(
                    "expected name:key with a caller's name of 1 to 64 letters, digits, '.', '_', '@' or '-'; "
                    "got another name (not repeated here: it may be part of a key); rename the caller"
                )
            if not _KEY.fullmatch(key):
                raise ConfigurationError(
                    f"expected an API key of 1 to 512 visible ASCII characters without spaces for {name!r}; "
                    "got another one; write name:key"
                )
            if len(key) < SHORT:
                logger.warning("the API key of %r has fewer than %d characters; make it longer", name, SHORT)
            if names.setdefault(_digest(key.encode()), name) != name:
                raise ConfigurationError(
                    f"expected a key of its own for each caller; {name!r} has the key of another; make a new one"
                )
        if not names:
            raise ConfigurationError(
                "expected at least one API key; got none; write name:key, or set no keys at all"
            )
        self._names = list(names.items())

    @override
    def __repr__(self) -> str:
        return f"ApiKeys(names={sorted({name for _, name in self._names})})"

    def caller_of(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the name of the caller.

        Args:
            headers: of the request, as ASGI has them. X-API-Key counts before Authorization.

        Raises:
            MissingApiKeyError: neither X-API-Key nor Authorization: Bearer.
            InvalidApiKeyError: a key that is not one of these.
        """
        came = _key_in(headers)
        if not came:
            raise MissingApiKeyError(
                "expected an API key in the header Authorization: Bearer KEY or X-API-Key: KEY; got none"
            )
        digest = _digest(came)
        caller = None
        for known, name in self._names:  # to the end, whatever matches
            if hmac.compare_digest(known, digest):
                caller = name
        if caller is None:
            raise InvalidApiKeyError(
                "expected one of this server's API keys; got another; ask its operator for one"
            )
        return caller


def read_api_keys(file: Path | None = None, environ: Mapping[str, str] | None = None) -> ApiKeys | None:
    """Read the keys of a file and of the variable AUGSERVE_API_KEYS.

    Args:
        file: one `name:key` or `key` a line; empty lines and those that start with # are skipped.
        environ: the environment, os.environ when None; the variable holds the same, separated by commas.

    Returns:
        The keys; None where neither is given, and everyone may ask. A key without a name is called key-1 if it is
        the first of all, key-2 if the second.

    Raises:
        ConfigurationError: a file that cannot be read or holds no key, or as `ApiKeys`.
    """
    text = (os.environ if environ is None else environ).get(VARIABLE, "")
    if file is None and not text:
        return None
    lines = _lines_of(file) if file is not None else []
    entries = [*lines, *(entry.strip() for entry in text.split(",") if entry.strip())]
    pairs = []
    for number, entry in enumerate(entries, 1):
        name, colon, key = entry.partition(":")
        pairs.append((name.strip(), key.strip()) if colon else (f"key-{number}", entry))
    return ApiKeys(pairs)


class Guard:
    """An ASGI application that only callers with a key reach; the paths of the probes stay open.

    It writes the caller's name to scope["state"]["caller"].

    Args:
        app: what is guarded.
        keys: the keys.
        metrics_open: whether /metrics needs no key.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, *, metrics_open: bool = False) -> None:
        self.app = app
        self._keys = keys
        self._open = OPEN_PATHS | {METRICS_PATH} if metrics_open else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a caller with a key pass, or refuse."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and _path(scope) in self._open):
            await self.app(scope, receive, send)
            return
        try:
            caller = self._keys.caller_of(scope["headers"])
        except (MissingApiKeyError, InvalidApiKeyError) as error:
            await _refuse(error, scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, send)


async def _refuse(
    error: MissingApiKeyError | InvalidApiKeyError, scope: Scope, receive: Receive, send: Send
) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    refusal = refusal_of(error)
    scope.get("state", {}).get("access", {})["code"] = refusal.code
    headers = {"WWW-Authenticate": 'Bearer realm="augserve"'} if refusal.status == 401 else None
    response = JSONResponse({"error": str(error), "code": refusal.code}, refusal.status, headers)
    await response(scope, receive, send)


def _path(scope: Scope) -> str:
    """Return the path below the one that a proxy took for itself."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _key_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the key that a request carries; b"" where it carries none."""
    bearer = b""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and not bearer:
            scheme, _, token = value.strip().partition(b" ")
            bearer = token.strip() if scheme.lower() == b"bearer" else b""
    return bearer


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _lines_of(file: Path) -> list[str]:
    try:
        if os.name == "posix" and file.stat().st_mode & stat.S_IROTH:
            logger.warning("every user of this machine can read the API keys in %s; run chmod o-r on it", file)
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigurationError(
            f"cannot read the API keys in {file}: {reason}; write one name:key a line"
        ) from None
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]
