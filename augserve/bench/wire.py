"""HTTP/1.1 over keep-alive sockets, as little of it as a load generator needs.

The generator shares the machine with the server that it measures, so a request costs it one send and one receive:
its bytes are made beforehand, and of the answer only the status and the length are read.
"""

from __future__ import annotations

import select
import selectors
import socket
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from augserve.errors import ConfigurationError

LOST, MALFORMED = "connection lost", "malformed answer"

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_CHUNK = 1 << 16
_Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]  # as getaddrinfo gives them


def request_bytes(
    url: str, path: str, body: bytes, content_type: str, headers: Iterable[tuple[str, str]] = ()
) -> bytes:
    """Return the bytes of a POST.

    Example:
        >>> request_bytes("http://127.0.0.1:8000", "/predict", b"{}", "application/json")[:22]
        b'POST /predict HTTP/1.1'
    """
    lines = [
        f"POST {urlsplit(url).path.rstrip('/')}{path} HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def address_of(url: str) -> tuple[str, int]:
    """Return host and port of an http:// URL.

    Raises:
        ConfigurationError: another kind of URL, or none.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme != "http":
        raise ConfigurationError(f"expected a URL such as http://127.0.0.1:8000; got {url[:80]!r}")
    return host, port or 80


class Wire:
    """Keep-alive connections to one server, opened as they are needed.

    Args:
        url: the server's, http://HOST:PORT.
        limit: the most connections, each of which carries one request at a time.

    Example:
        >>> with Wire("http://127.0.0.1:8000", 1) as wire:  # doctest: +SKIP
        ...     wire.send(request, token=7)
        ...     wire.poll(None)
        [(7, '200')]
    """

    def __init__(self, url: str, limit: int) -> None:
        host, port = address_of(url)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise ConfigurationError(f"cannot find {host}: {error.strerror}; check the URL") from None
        self._family, self._address = found[0], found[4]
        self._limit = limit
        self._selector = selectors.DefaultSelector()
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._failed: list[int] = []

    @property
    def free(self) -> bool:
        """Whether a request can be sent now."""
        return bool(self._idle) or len(self._open) < self._limit

    def send(self, request: bytes, token: int) -> None:
        """Start a request where there is a free connection; `poll` gives its token back."""
        if self._idle:
            connection = self._idle.pop()  # the one used last: those left over are closed by the server in time
        else:
            connection = _Connection(self._family, self._address)
            self._open.add(connection)
            self._selector.register(connection.socket, _READ, connection)
        connection.token = token
        try:
            if connection.write(request):
                self._selector.modify(connection.socket, _READ | _WRITE, connection)
        except OSError:
            self._drop(connection)
            self._failed.append(token)

    def poll(self, timeout: float | None) -> Sequence[tuple[int, str]]:
        """Wait until something happens, or `timeout` seconds, and return the requests that ended.

        Returns:
            Their tokens, each with the answer's status ("200"), LOST or MALFORMED.
        """
        ended = [(token, LOST) for token in self._failed]
        self._failed.clear()
        if ended:
            timeout = 0
        if timeout is None or timeout > 0:  # select waits for microseconds, epoll for whole milliseconds
            select.select([self._selector.fileno()], (), (), timeout)
        for key, events in self._selector.select(0):
            connection: _Connection = key.data
            status = self._advance(connection, events)
            if status is None:
                continue
            token, connection.token = connection.token, None
            if token is not None:
                ended.append((token, status))
            if connection.reusable:
                self._idle.append(connection)
            else:
                self._drop(connection)
        return ended

    def _advance(self, connection: _Connection, events: int) -> str | None:
        """Read and write what can be; return a status once the request has ended."""
        try:
            status = connection.read() if events & _READ else None  # first: a refusal may come before all is sent
            if status is None and events & _WRITE and not connection.write(b""):
                self._selector.modify(connection.socket, _READ, connection)
        except OSError:
            connection.reusable = False
            return LOST
        return status

    def _drop(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close every connection, whatever it waits for."""
        for connection in list(self._open):
            self._drop(connection)
        self._selector.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Connection:
    """One socket, the rest of the request that it sends, and what has come of the answer."""

    def __init__(self, family: int, address: _Address) -> None:
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(address)  # a failure shows when it is written to
        self.token: int | None = None
        self.reusable = True
        self._unsent = memoryview(b"")
        self._came = bytearray()
        self._length: int | None = None  # of the whole answer, known once its headers have come

    def write(self, request: bytes) -> bool:
        """Send what the socket takes; True while something is left."""
        if request:
            self._unsent = memoryview(request)
        try:
            sent = self.socket.send(self._unsent)
        except BlockingIOError:
            return True
        self._unsent = self._unsent[sent:]
        return len(self._unsent) > 0

    def read(self) -> str | None:
        """Receive what has come; return the status once the answer is whole."""
        try:
            chunk = self.socket.recv(_CHUNK)
        except BlockingIOError:
            return None
        if not chunk or self.token is None:  # closed, or an answer that nobody asked for
            self.reusable = False
            return LOST if not chunk else MALFORMED
        self._came += chunk
        if self._length is None and not self._read_headers():
            return None if self.reusable else MALFORMED
        if self._length is None or len(self._came) < self._length:
            return None
        self.reusable &= len(self._came) == self._length and not self._unsent
        status = self._came[9:12].decode("ascii", "replace")
        self._came.clear()
        self._length = None
        return status

    def _read_headers(self) -> bool:
        """Find the answer's length once all headers have come; answers without one are not read."""
        end = self._came.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._came[: end + 2]).lower()
        at = head.find(b"\r\ncontent-length:")
        length = head[at + 17 : head.find(b"\r\n", at + 17)].strip() if at >= 0 else b""
        if not head.startswith(b"http/1.") or not length.isdigit():
            self.reusable = False
            return False
        self.reusable = b"\r\nconnection: close" not in head
        self._length = end + 4 + int(length)
        return True
