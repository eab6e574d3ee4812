"""One write for an answer: what is written within one turn of the event loop leaves together.

uvicorn writes the headers of an answer and its body apart. Each write is a system call that may wake the reader,
and costs more than making the answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from typing_extensions import override
from uvicorn.protocols.http.auto import AutoHTTPProtocol

AT_ONCE = 2**16  # bytes that are not held back


class Gathering:
    """A transport that holds back what is written until the event loop's next turn.

    Args:
        transport: what it is sent through.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send bytes, in their order."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        if len(data) >= AT_ONCE:
            self._flush()

    def close(self) -> None:
        """Close once everything is sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held and not self._transport.is_closing():  # else the reader has left meanwhile
            self._transport.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class GatheringProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # uvicorn chooses it when it is imported
    """uvicorn's HTTP protocol, with answers that leave in one write.

    Example:
        >>> uvicorn.Config(app, http=GatheringProtocol)  # doctest: +SKIP
    """

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(Gathering(transport))
