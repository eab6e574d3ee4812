"""The generator's HTTP: what is sent is what arrives, and every end of an answer is told apart."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader

import pytest

from augserve.bench.server_process import free_port
from augserve.bench.wire import LOST, MALFORMED, Wire, address_of, request_bytes
from augserve.errors import ConfigurationError

FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class Peer:
    """Reads whole requests and answers each with the next of `answers`, byte by byte; None closes instead."""

    def __init__(self, answers: list[bytes | None]) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self._answers = answers
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self._answers:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            with suppress(ConnectionError), connection, connection.makefile("rb") as stream:
                self._answer(connection, stream)

    def _answer(self, connection: socket.socket, stream: BufferedReader) -> None:
        while self._answers and self._read(stream):
            answer = self._answers.pop(0)
            if answer is None:
                return
            for k in range(len(answer)):
                connection.send(answer[k : k + 1])
            if b"connection: close" in answer.lower():
                return
        stream.read()  # until the other end has closed, so that nothing is reset

    def _read(self, stream: BufferedReader) -> bool:
        lines = list(iter(stream.readline, b"\r\n"))
        if not lines or b"" in lines:
            return False
        length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length"))
        self.requests.append(b"".join(lines) + b"\r\n" + stream.read(length))
        return True

    def close(self) -> None:
        self.listener.close()
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def talking(*answers: bytes | None, limit: int = 1) -> Iterator[tuple[Peer, Wire]]:
    peer = Peer(list(answers))
    try:
        with Wire(peer.url, limit) as wire:
            yield peer, wire
    finally:
        peer.close()


def ask(wire: Wire, request: bytes, token: int = 0) -> str:
    wire.send(request, token)
    end = time.monotonic() + 20
    while not (ended := wire.poll(20)):
        assert time.monotonic() < end, "no answer"
    assert [came for came, _ in ended] == [token]
    return ended[0][1]


def post(peer: Peer, body: bytes = b"{}") -> bytes:
    return request_bytes(peer.url, "/predict", body, "application/json", [("X-Key", "k")])


def test_one_connection_carries_many_requests_as_they_were_written() -> None:
    busy = b"HTTP/1.1 429 Too Many\r\nretry-after: 1\r\nCONTENT-LENGTH:  0\r\n\r\n"
    with talking(FINE, busy, FINE) as (peer, wire):
        bodies = [b"{}", b"", b"\r\n\r\n" * 9]
        assert [ask(wire, post(peer, body), k) for k, body in enumerate(bodies)] == ["200", "429", "200"]
    assert peer.connections == 1
    assert peer.requests == [post(peer, body) for body in bodies]
    head = post(peer, b"12345").split(b"\r\n")
    assert head[0] == b"POST /predict HTTP/1.1"
    assert {b"Content-Length: 5", b"Content-Type: application/json", b"X-Key: k"} < set(head[1:])


def test_a_body_larger_than_the_socket_takes_arrives_whole() -> None:
    body = bytes(range(256)) * 2**16  # 16 MiB
    with talking(FINE, FINE) as (peer, wire):
        assert ask(wire, post(peer, body)) == "200"
        assert ask(wire, post(peer)) == "200"
    assert peer.requests == [post(peer, body), post(peer)]
    assert peer.connections == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (None, LOST),
        (b"HTTP/1.1 503 Bye\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno", "503"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", MALFORMED),
        (b"SSH-2.0-x\r\n\r\n", MALFORMED),
    ],
)
def test_after_an_end_that_spoils_the_connection_the_next_request_opens_another(
    answer: bytes | None, status: str
) -> None:
    spoilt = answer if answer is None or b"lose" in answer else answer + b"Connection: close"
    with talking(spoilt, FINE) as (peer, wire):
        assert ask(wire, post(peer)) == status
        assert ask(wire, post(peer)) == "200"
    assert peer.connections == 2


def test_no_more_connections_are_opened_than_allowed() -> None:
    closing = FINE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with talking(closing, closing, FINE, limit=2) as (peer, wire):
        free = []
        for token in (1, 2):
            free.append(wire.free)
            wire.send(post(peer), token)
        assert (free, wire.free) == ([True, True], False)
        ended: dict[int, str] = {}
        while len(ended) < 2:
            ended.update(wire.poll(20))
        assert ended == {1: "200", 2: "200"}
        assert wire.free
        assert ask(wire, post(peer)) == "200"
    assert peer.connections == 3


def test_a_port_where_nothing_listens_is_a_lost_connection() -> None:
    with Wire(f"http://127.0.0.1:{free_port()}", 1) as wire:
        assert ask(wire, b"POST / HTTP/1.1\r\n\r\n", 5) == LOST
        assert wire.free


def test_addresses() -> None:
    assert address_of("http://localhost:9000/prefix") == ("localhost", 9000)
    assert address_of("http://[::1]") == ("::1", 80)
    assert request_bytes("http://a:1/prefix/", "/predict?x=1", b"", "t").startswith(
        b"POST /prefix/predict?x=1 HTTP"
    )
    for url in ("https://localhost", "localhost:8000", "", "http://a:b", "http://[::1"):
        with pytest.raises(ConfigurationError, match="expected a URL such as"):
            address_of(url)
