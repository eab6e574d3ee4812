"""Connections that break, on true sockets: what is tried again, and what is an error."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from augserve.client import AsyncClient, Client
from augserve.client.retries import Sources
from augserve.errors import RemoteError

ROWS = np.zeros((1, 3, 2, 2), np.float32)
AT_ONCE = Sources(chance=lambda: 0.0)

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Predict by either client, with no pauses between its tries."""

    def sync(url: str, **options: Any) -> dict[str, Any]:
        with Client(url, sources=AT_ONCE, **options) as client:
            return client.predict(ROWS)

    def by_asyncio(url: str, **options: Any) -> dict[str, Any]:
        async def run() -> dict[str, Any]:
            async with AsyncClient(url, sources=AT_ONCE, **options) as client:
                return await client.predict(ROWS)

        return asyncio.run(run())

    return sync if request.param == "sync" else by_asyncio


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def read_request(connection: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    head, _, body = head.partition(b"\r\n\r\n")
    missing = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]) - len(body)
    while missing > 0:
        missing -= len(connection.recv(65536))


def reset_after_reading(connection: socket.socket) -> None:
    read_request(connection)
    reset(connection)


def answer(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"statistics": {}}')


def answer_by_half(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"statistics"')


@contextmanager
def sockets(*script: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[int]]]:
    """Treat one connection after the other as the script says; yields the address and whom it served."""
    served: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for k, treat in enumerate(script):
                connection, _ = listener.accept()
                served.append(k)
                with connection:
                    treat(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", served
        thread.join(20)
        assert not thread.is_alive()


def test_reset_and_closed_connections_are_tried_again(ask: Ask) -> None:
    with sockets(reset, reset_after_reading, read_request, answer) as (url, served):
        assert ask(url) == {"statistics": {}}
        assert served == [0, 1, 2, 3]


def test_half_an_answer_is_not_tried_again(ask: Ask) -> None:
    with sockets(answer_by_half) as (url, served):
        with pytest.raises(RemoteError, match="broke off its answer"):
            ask(url)
        assert served == [0]


def test_a_server_that_is_not_there_is_tried_again(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RemoteError, match=rf"could not reach {url} \(.+\) \(tried 3 times\); is `augserve serve`"):
        ask(url, retries=2)
