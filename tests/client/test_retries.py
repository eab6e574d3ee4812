"""When a client tries again and for how long: both clients, with a clock that only the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from email.utils import formatdate
from typing import Any

import httpx
import numpy as np
import pytest

from augserve.client import AsyncClient, Client, RefusedError
from augserve.client.answers import parse_retry_after
from augserve.client.retries import Sources
from augserve.errors import ConfigurationError, RemoteError

NOW = 1_800_000_000.0
ANSWER = {"predictions": [], "statistics": {}}
ROWS = np.zeros((1, 3, 2, 2), np.float32)
FULL = httpx.Response(429, json={"error": "the queue is full", "code": "queue_full"})


class Time:
    """A clock that moves when someone sleeps; `chance` answers every throw of the dice."""

    def __init__(self, chance: float = 0.0) -> None:
        self.seconds = 100.0
        self.slept: list[float] = []
        self.sources = Sources(lambda: self.seconds, lambda: NOW + self.seconds - 100.0, lambda: chance)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


class Server:
    """Answers one request after the other from a script; the last entry is repeated."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        entry = self.script[min(len(self.requests), len(self.script) - 1)]
        self.requests.append(request)
        if isinstance(entry, Exception):
            raise entry
        if isinstance(entry, httpx.Response):  # a fresh copy: one of httpx can be read once
            return httpx.Response(entry.status_code, headers=entry.headers, content=entry.content)
        return entry()


Ask = Callable[..., dict[str, Any]]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Predict by either client against a script or an address."""

    def sync(server: Server, time: Time, **options: Any) -> dict[str, Any]:
        transport = httpx.MockTransport(server)
        with Client(
            "http://tiny", transport=transport, sources=time.sources, sleep=time.sleep, **options
        ) as client:
            return client.predict(ROWS)

    def by_asyncio(server: Server, time: Time, **options: Any) -> dict[str, Any]:
        async def run() -> dict[str, Any]:
            how = {"transport": httpx.MockTransport(server), "sources": time.sources, "sleep": time.asleep}
            async with AsyncClient("http://tiny", **how, **options) as client:
                return await client.predict(ROWS)

        return asyncio.run(run())

    return sync if request.param == "sync" else by_asyncio


def ok() -> httpx.Response:
    return httpx.Response(200, json=ANSWER)


def refusal(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": "not now", "code": "not_now"}, headers=headers)


@pytest.mark.parametrize(
    "failure",
    [
        refusal(429),
        refusal(503),
        httpx.Response(503, text="a proxy's page"),
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.WriteError("broken pipe"),
        httpx.RemoteProtocolError("closed without a word"),
    ],
)
def test_a_passing_failure_is_tried_again_with_the_same_request(ask: Ask, failure: Any) -> None:
    server, time = Server(failure, failure, ok), Time(0.5)
    assert ask(server, time) == ANSWER
    assert time.slept == [0.125, 0.25]
    assert len({(r.method, str(r.url), r.content) for r in server.requests}) == 1
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 415, 422, 500, 502, 504])
def test_other_statuses_are_final_and_keep_the_server_s_words(ask: Ask, status: int) -> None:
    server, time = Server(refusal(status)), Time()
    with pytest.raises(RefusedError, match=f"^http://tiny answered {status}: not now$") as caught:
        ask(server, time)
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (status, "not_now", None)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "error",
    [httpx.ReadTimeout(""), httpx.ConnectTimeout(""), httpx.UnsupportedProtocol("no"), httpx.ProxyError("")],
)
def test_time_outs_and_wrong_addresses_are_final(ask: Ask, error: Exception) -> None:
    server = Server(error)
    with pytest.raises(RemoteError):
        ask(server, Time())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("chance", "waits"),
    [(0.0, [0.0] * 8), (0.5, [0.125, 0.25, 0.5, 1, 2, 4, 5, 5]), (0.999, [0.24975, 0.4995, 0.999, 1.998])],
)
def test_waits_double_up_to_ten_seconds_and_start_at_nothing(ask: Ask, chance: float, waits: list[float]) -> None:
    time = Time(chance)
    with pytest.raises(RefusedError, match=rf"the queue is full \(tried {len(waits) + 1} times\)"):
        ask(Server(FULL), time, retries=len(waits))
    assert time.slept == pytest.approx(waits)


@pytest.mark.parametrize("chance", [0.0, 1.0])
@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        (formatdate(NOW + 7, usegmt=True), 7),
        (formatdate(NOW - 7, usegmt=True), 0),
        ("3600", 30),
        (formatdate(NOW + 3600, usegmt=True), 30),
        ("9" * 400, 30),
        ("-7", 0),
        ("1.5", 0),
        ("soon", 0),
        ("", 0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 30),
    ],
)
def test_retry_after_is_waited_for_up_to_thirty_seconds(ask: Ask, header: str, asked: float, chance: float) -> None:
    time = Time(chance)
    assert ask(Server(refusal(429, **{"Retry-After": header}), ok), time) == ANSWER
    assert time.slept == pytest.approx([asked + 0.25 * chance])


def test_a_date_without_a_zone_is_gmt() -> None:
    assert parse_retry_after("Thu, 01 Jan 1970 00:01:00", 50.0) == 10.0
    assert parse_retry_after("Thu, 01 Jan 1970 00:01:00 -0000", 50.0) == 10.0
    assert parse_retry_after(None, 0.0) is None


def test_the_error_says_when_to_come_back(ask: Ask) -> None:
    with pytest.raises(RefusedError) as caught:
        ask(Server(refusal(429, **{"Retry-After": "3600"})), Time(), retries=0)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 3600.0)


def test_retries_bound_the_tries(ask: Ask) -> None:
    for failure, error in ((FULL, RefusedError), (httpx.ConnectError("refused"), RemoteError)):
        for retries in (0, 1, 4):
            server = Server(failure)
            with pytest.raises(error):
                ask(server, Time(), retries=retries)
            assert len(server.requests) == retries + 1


def test_total_time_bounds_the_tries(ask: Ask) -> None:
    server, time = Server(refusal(503, **{"Retry-After": "20"})), Time()
    with pytest.raises(RefusedError, match="not now"):
        ask(server, time, retries=100, total_s=50.0)
    assert time.slept == [20, 20]  # a third would end after 60 s: not waited for in vain
    assert len(server.requests) == 3


def test_a_try_is_no_more_patient_than_the_whole(ask: Ask) -> None:
    server = Server(refusal(503, **{"Retry-After": "20"}))
    with pytest.raises(RefusedError):
        ask(server, Time(), timeout_s=25.0, total_s=50.0)
    assert [request.extensions["timeout"]["read"] for request in server.requests] == [25, 25, 10]


class BrokenStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Half an answer, then a reset."""

    def __iter__(self) -> Iterator[bytes]:
        yield b'{"predictions":'
        raise httpx.ReadError("reset")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


def test_an_answer_that_broke_off_is_an_error_to_be_seen(ask: Ask) -> None:
    server = Server(lambda: httpx.Response(200, stream=BrokenStream()))
    with pytest.raises(RemoteError, match="broke off its answer"):
        ask(server, Time())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (httpx.Response(200, text="<html>"), "expected JSON with 'statistics' from http://tiny"),
        (httpx.Response(200, json=[1]), "expected JSON with 'statistics' from http://tiny"),
        (httpx.Response(200, json={"predictions": []}), "expected JSON with 'statistics' from http://tiny"),
        (httpx.Response(404, text="two\nlines"), "answered 404: two lines$"),
        (httpx.Response(500), "answered 500: no reason given$"),
        (httpx.Response(418, json={"error": ["odd"], "code": 7}), r"answered 418: \['odd'\]$"),
    ],
)
def test_an_answer_of_another_server_is_one_clear_line(ask: Ask, response: httpx.Response, words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        ask(Server(response), Time())


@pytest.mark.parametrize("limit", [{"retries": -1}, {"timeout_s": 0}, {"total_s": 0}, {"total_s": float("nan")}])
def test_impossible_limits_are_refused(limit: dict[str, Any]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigurationError, match=f"expected {next(iter(limit))} a"):
            kind("http://tiny", **limit)
