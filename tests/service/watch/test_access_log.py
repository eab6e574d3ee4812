"""One line a request, whatever becomes of it; an id in each answer; and nothing in the way of the application."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import string
import threading
from datetime import datetime, timedelta, timezone

import pytest
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from augserve.service.http.keys import ApiKeys
from augserve.service.watch.logs import LineHandler, access_log
from augserve.service.watch.metrics import Metrics
from augserve.service.watch.observe import Observe, note, note_run
from tests.service.observed import ask, ask_all, drive, lines_of, make_app, sample

HEX = set("0123456789abcdef")


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("augserve.access", logging.INFO, "", 0, text, None, None)


async def _ignore(message: Message) -> None:
    pass


def test_a_line_says_what_was_asked_and_answered() -> None:
    before = datetime.now(timezone.utc)
    (line,) = lines_of(lambda: ask(make_app(), "POST", "/predict?key=hidden", content=b"x" * 300))
    after = datetime.now(timezone.utc)
    assert line["time"].endswith("Z")
    slack = timedelta(milliseconds=50)  # the clock of the time and that of durations are two
    assert before - slack <= datetime.fromisoformat(line.pop("time").replace("Z", "+00:00")) <= after + slack
    assert 0 <= line.pop("duration_ms") <= 1e3 * (after - before + slack).total_seconds()
    identity = line.pop("request_id")
    assert line == {
        "method": "POST",
        "path": "/predict",
        "status": 200,
        "bytes_in": 300,
        "bytes_out": len(json.dumps({"bytes": 300, "id": identity}, separators=(",", ":"))),
        "client": "10.1.2.3",
        "model": "tiny",
        "mode": "batch",
        "rows": 8,
        "groups": 2,
        "queue_ms": 2.0,
        "run_ms": 30.0,
    }


@pytest.mark.parametrize("given", ["a", "3f-7_.:/", "~" * 128, string.punctuation])
def test_a_good_request_id_is_taken_over(given: str) -> None:
    response = ask(make_app(), "POST", "/predict", headers={"X-Request-ID": given})
    assert response.headers.get_list("x-request-id") == [given]
    assert response.json()["id"] == given


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, b"caf\xe9", b"tab\tbed", b"line\nbreak", b"\x7f"])
def test_any_other_request_id_is_replaced_by_one_of_its_own(given: bytes) -> None:
    options = {"headers": [(b"X-Request-ID", given)]}
    made = [one.headers["x-request-id"] for one in ask_all(make_app(), [("POST", "/predict", options)] * 2)]
    assert made[0] != made[1]
    assert all(len(one) == 32 and set(one) <= HEX for one in made)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/full", 429, "queue_full"),
        ("/broken", 500, "internal_error"),
        ("/nowhere", 404, "not_found"),
        ("/healthz", 200, None),
    ],
)
def test_every_answer_has_the_id_of_its_line(path: str, status: int, code: str | None) -> None:
    answers = []
    (line,) = lines_of(lambda: answers.append(ask(make_app(), "GET", path, headers={"X-Request-ID": "mine"})))
    assert answers[0].status_code == line["status"] == status
    assert answers[0].headers["x-request-id"] == line["request_id"] == "mine"
    assert line.get("code") == code
    assert "secret" not in json.dumps(line)


def test_an_answer_has_one_id_even_where_the_application_gives_one_and_reuses_its_answer() -> None:
    answer = JSONResponse({}, headers={"X-Request-ID": "the application's"})
    app = Observe(answer, Metrics())
    for given in ("first", "second"):
        response = ask(app, "GET", "/", headers={"X-Request-ID": given})
        assert response.headers.get_list("x-request-id") == [given]
    assert (b"x-request-id", b"the application's") in answer.raw_headers


def test_what_was_raised_reaches_the_server() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("kept")

    def act() -> None:
        with pytest.raises(KeyError, match="kept"):
            asyncio.run(drive(Observe(broken, Metrics()), _never, _ignore))

    (line,) = lines_of(act)
    assert line["status"] == 500


def test_a_stream_passes_part_by_part() -> None:
    answers = []
    (line,) = lines_of(lambda: answers.append(ask(make_app(), "GET", "/stream")))
    assert answers[0].content == b"onetwo"
    assert (line["status"], line["bytes_out"]) == (200, 6)


def test_a_stream_that_breaks_is_recorded_as_500() -> None:
    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        raise RuntimeError("half-way")

    def act() -> None:
        with pytest.raises(RuntimeError, match="half-way"):
            asyncio.run(drive(Observe(half, Metrics()), _never, _ignore))

    (line,) = lines_of(act)
    assert (line["status"], line["bytes_out"]) == (500, 3)


def test_an_upload_that_is_broken_off_is_499() -> None:
    metrics = Metrics()
    messages = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(messages)

    async def act() -> None:
        # The framework raises that its caller left; a server drops what is then sent to nobody.
        try:
            await drive(make_app(metrics), receive, _ignore)
        except Exception as error:
            assert "Disconnect" in type(error).__name__  # noqa: PT017

    (line,) = lines_of(lambda: asyncio.run(act()))
    assert (line["status"], line["bytes_in"]) == (499, 4)
    assert sample(metrics, "augserve_requests_total", model="", mode="", status="499") == 1


def test_a_reader_that_leaves_half_way_is_499() -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    (line,) = lines_of(lambda: asyncio.run(drive(Observe(stream, Metrics()), receive, _ignore)))
    assert (line["status"], line["bytes_out"]) == (499, 3)


def test_a_server_that_tells_on_sending_makes_499_too() -> None:
    async def send(message: Message) -> None:
        raise OSError("the caller left")

    def act() -> None:
        with pytest.raises(OSError, match="left"):
            asyncio.run(drive(Observe(JSONResponse({}), Metrics()), _never, send))

    (line,) = lines_of(act)
    assert line["status"] == 499


def test_a_disconnect_after_the_answer_changes_nothing() -> None:
    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({})(scope, receive, send)
        assert (await receive())["type"] == "http.disconnect"

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    (line,) = lines_of(lambda: asyncio.run(drive(Observe(late, Metrics()), receive, _ignore)))
    assert line["status"] == 200


def test_a_cancelled_request_is_499_and_stays_cancelled() -> None:
    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await asyncio.Event().wait()

    async def act() -> None:
        task = asyncio.ensure_future(drive(Observe(waits, Metrics()), _never, _ignore))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    started = asyncio.Event()
    (line,) = lines_of(lambda: asyncio.run(act()))
    assert line["status"] == 499


def test_the_caller_of_a_key_is_named_and_the_key_is_not() -> None:
    app = make_app(keys=ApiKeys([("alice", "correct-horse-battery")]))
    good = ("POST", "/predict", {"headers": {"X-API-Key": "correct-horse-battery"}})
    bad = ("POST", "/predict", {"headers": {"X-API-Key": "wrong-horse-battery"}})
    lines = lines_of(lambda: ask_all(app, [good, bad]))
    assert [line.get("caller") for line in lines] == ["alice", None]
    assert [(line["status"], line.get("code")) for line in lines] == [(200, None), (403, "invalid_api_key")]
    assert "horse" not in json.dumps(lines)


def test_what_a_caller_writes_cannot_forge_or_bloat_a_line() -> None:
    name = 'x"}\n{"status": 200, "path": "' + "y" * 5000
    lines = lines_of(lambda: ask(make_app(), "GET", "/models/" + name.replace("\n", "%0A")))
    assert len(lines) == 1
    assert lines[0]["model"] == name[:256]
    assert len(json.dumps(lines[0])) < 2000


def test_a_path_that_is_no_unicode_is_logged_all_the_same() -> None:
    app = Observe(JSONResponse({}), Metrics())
    (line,) = lines_of(lambda: asyncio.run(drive(app, _never, _ignore, path="/\udcff")))
    assert (line["status"], line["path"]) == (200, "'/\\udcff'")


def test_watching_that_fails_fails_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    monkeypatch.setattr(metrics, "request", None)
    assert ask(make_app(metrics), "POST", "/predict").status_code == 200
    assert any(one.name == "augserve.service.watch.observe" and one.exc_info for one in caplog.records)


def test_other_scopes_pass_untouched() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    asyncio.run(Observe(app, Metrics())({"type": "lifespan"}, _never, _ignore))
    assert seen == [{"type": "lifespan"}]


def test_notes_outside_of_the_middleware_are_lost_quietly() -> None:
    scope: Scope = {"type": "http"}
    note(scope, model="tiny")
    note_run(scope, 0.1, 0.2)
    assert scope == {"type": "http"}


def test_off_writes_nothing_and_on_leaves_the_logger_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("augserve.access")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with access_log(False):
        ask(make_app(), "POST", "/predict")
    assert capsys.readouterr() == ("", "")
    with access_log(True):
        ask(make_app(), "POST", "/predict")
    written = capsys.readouterr()
    assert json.loads(written.err)["path"] == "/predict"
    assert written.out == ""  # where `augserve serve` tells its address
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_handlers_of_the_application_around_are_left_in_charge() -> None:
    logger = logging.getLogger("augserve.access")
    mine, stream = logging.NullHandler(), io.StringIO()
    logger.addHandler(mine)
    try:
        with access_log(True, stream):
            assert logger.handlers == [mine]
    finally:
        logger.removeHandler(mine)


class Stuck(io.StringIO):
    """A stream whose reader reads on only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.free = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        assert self.free.wait(20)
        return super().write(text)


def test_a_stuck_reader_holds_nobody_up_and_what_was_dropped_is_counted() -> None:
    stream = Stuck()
    handler = LineHandler(stream, max_waiting=5)
    handler.handle(record('{"n": -1}'))
    assert stream.reached.wait(20)
    for n in range(12):
        handler.handle(record(f'{{"n": {n}}}'))
    stream.free.set()
    handler.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines == [{"n": -1}, *({"n": n} for n in range(5)), {"dropped": 7}]


def test_closing_writes_every_line_and_twice_is_once() -> None:
    stream = io.StringIO()
    handler = LineHandler(stream)
    for n in range(2000):
        handler.handle(record(str(n)))
    handler.close()
    handler.close()
    assert stream.getvalue().split() == [str(n) for n in range(2000)]


def test_a_stream_that_is_closed_ends_neither_requests_nor_the_thread() -> None:
    stream = io.StringIO()
    stream.close()
    handler = LineHandler(stream)
    handler.handle(record("lost"))
    handler.close()
    assert not any(thread.name == "augserve-access-log" for thread in threading.enumerate())


async def _never() -> Message:
    raise AssertionError("nobody reads here")
