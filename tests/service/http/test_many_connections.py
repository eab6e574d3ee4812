"""A thousand connections that say nothing, or stop in the middle of a request, do not stop service."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.service.tiny import expected_logits, running, some_rows, wait_until

CONNECTIONS = 1000
FILES = 2 * CONNECTIONS + 200  # both ends of each are this process's
HALF = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Len"
KEPT = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[httpx.Client]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"the system allows {hard} open files; {FILES} are needed")
    raised = soft != resource.RLIM_INFINITY and soft < FILES
    if raised:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    try:
        with running(model) as client:
            yield client
    finally:
        if raised:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(params=["silent", "half a header", "kept alive"])
def crowd(request: pytest.FixtureRequest, server: httpx.Client) -> Iterator[list[socket.socket]]:
    """Open connections, each of which the server has accepted."""
    said = {"silent": b"", "half a header": HALF, "kept alive": KEPT}[request.param]
    address = (server.base_url.host, server.base_url.port)
    lines: list[socket.socket] = []
    try:
        for _ in range(CONNECTIONS):
            lines.append(socket.create_connection(address, timeout=20))
            lines[-1].sendall(said)
            if said == KEPT:
                assert lines[-1].recv(4096).startswith(b"HTTP/1.1 200")
        yield lines
    finally:
        for line in lines:
            line.close()


def test_service_goes_on_beside_them(server: httpx.Client, crowd: list[socket.socket]) -> None:
    rows = some_rows(4)
    expected = expected_logits(rows, [[0, 1], [2, 3]], [0, 0])
    body = {"instances": rows.tolist(), "batch_size": 2, "tracking": False, "return": ["logits"]}
    with httpx.Client(base_url=server.base_url, timeout=20) as newcomer:
        for client in (server, newcomer):
            answer = client.post("/predict", json=body)
            assert answer.status_code == 200, answer.text
            logits = [one["logits"] for one in answer.json()["predictions"]]
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    for line in crowd:  # none was dropped to make room
        line.setblocking(False)
        with pytest.raises(BlockingIOError):
            line.recv(1)


def test_they_take_no_places(server: httpx.Client, crowd: list[socket.socket]) -> None:
    wait_until(lambda: server.service.scheduler.taken == 0)
    assert len(crowd) == CONNECTIONS > server.service.scheduler.places
