"""Too many requests, too little time, too early, too late."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from augserve.service import create_app, lifecycle, read_settings
from augserve.service.queue import scheduler
from tests.service.tiny import running, some_rows, wait_until, write_model

BODY = {"instances": some_rows(1).tolist()}
HALF = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"


class Gate:
    """Holds every run of a model until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = 0
        self.open = threading.Event()
        run = scheduler.run_together

        def held(form: object, pieces: object, **how: bool) -> object:
            self.entered += 1
            assert self.open.wait(20)
            return run(form, pieces, **how)

        monkeypatch.setattr(scheduler, "run_together", held)
        monkeypatch.setattr(scheduler, "AT_ONCE_S", 0.0)  # each run in a thread, which may wait


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def test_full_queue_is_429_and_empties(model: Path, gate: Gate) -> None:
    with ThreadPoolExecutor(3) as pool, running(model, queue_limit=2) as client:
        waiting = [pool.submit(client.post, "/predict", json=BODY) for _ in range(3)]
        wait_until(lambda: gate.entered == 1 and client.service.scheduler.taken == 3)
        refused = client.post("/predict", json=BODY)
        assert refused.status_code == 429
        assert refused.json()["code"] == "queue_full"
        assert int(refused.headers["Retry-After"]) >= 1
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        gate.open.set()
        assert [one.result(20).status_code for one in waiting] == [200, 200, 200]
        assert client.post("/predict", json=BODY).status_code == 200


def test_request_that_waited_too_long_is_504(model: Path, gate: Gate) -> None:
    with ThreadPoolExecutor(1) as pool, running(model, request_timeout_s=0.2) as client:
        first = pool.submit(client.post, "/predict", json=BODY)
        wait_until(lambda: gate.entered == 1)
        late = client.post("/predict", json=BODY)
        assert late.status_code == 504
        assert late.json()["code"] == "deadline_exceeded"
        gate.open.set()
        assert first.result(20).status_code == 200, "a request that runs is answered, however late"
        assert gate.entered == 1, "a request past its deadline does not run"


def test_body_that_does_not_arrive_is_504(model: Path) -> None:
    with running(model, request_timeout_s=0.2) as client:
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(HALF)
            assert connection.recv(1000).startswith(b"HTTP/1.1 504")


def test_sender_that_goes_away_frees_its_place(model: Path) -> None:
    with running(model, queue_limit=0) as client:
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=20) as connection:
            connection.sendall(HALF)
            wait_until(lambda: client.service.scheduler.taken == 1)
            assert client.post("/predict", json=BODY).status_code == 429
        wait_until(lambda: client.post("/predict", json=BODY).status_code == 200)


def test_a_request_is_refused_until_the_model_is_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    load = lifecycle.Service.load

    def slow(service: lifecycle.Service) -> None:
        assert go.wait(20)
        load(service)

    monkeypatch.setattr(lifecycle.Service, "load", slow)
    with running(model, wait=False) as client:
        for response in (client.get("/readyz"), client.post("/predict", json=BODY)):
            assert response.status_code == 503
            assert response.json()["code"] == "not_ready"
            assert "loading" in response.json()["error"]
            assert int(response.headers["Retry-After"]) >= 1
        assert client.get("/healthz").status_code == 200
        assert client.get("/openapi.json").status_code == 200
        go.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/readyz").json() == {"status": "ready", "models": "tiny"}
        assert client.post("/predict", json=BODY).status_code == 200


def test_model_that_cannot_be_loaded_is_never_ready(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_model(tmp_path / "plain.onnx", manifest=False)
    with running(path, wait=False) as client:
        wait_until(lambda: "could not be loaded" in client.get("/readyz").text)
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
    assert "without an augserve manifest" in caplog.text


def test_draining_refuses_new_requests(model: Path) -> None:
    async def scenario() -> list[int]:
        app = create_app(read_settings(model=model, threads=1))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.005)
            before = await client.post("/predict", json=BODY)
            app.state.service.drain()
            after = [await client.get("/readyz"), await client.post("/predict", json=BODY)]
            assert all("draining" in one.json()["error"] and "Retry-After" in one.headers for one in after)
            alive = await client.get("/healthz")
        return [one.status_code for one in (before, *after, alive)]

    assert asyncio.run(scenario()) == [200, 503, 503, 200]


def test_a_small_model_is_ready_when_the_application_has_started(model: Path) -> None:
    async def first_answer() -> int:
        app = create_app(read_settings(model=model))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://a") as client,
        ):
            return (await client.post("/predict", json=BODY)).status_code

    assert asyncio.run(first_answer()) == 200
