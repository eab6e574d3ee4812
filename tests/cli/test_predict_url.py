"""`augserve predict --url` against a server of canned answers: what is sent, and what is shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from augserve.client import retries as client_retries
from tests.cli.conftest import Run, one_line

ANSWER: dict[str, Any] = {
    "predictions": [
        {"index": 1, "label": "bee", "probability": 0.75, "tracked": {"label": "bee", "probability": 0.5}},
        {"index": 0, "label": "ant", "probability": 0.5, "tracked": {"label": "[cow]", "probability": 0.625}},
    ],
    "model": "tiny",
    "model_version": "1",
    "statistics": {"mode": "batch", "tracked_weight": [0], "groups": [2], "remainder": "own", "dropped": []},
    "warnings": ["group 0 has one row"],
    "comparison": {"disagreement": 0.5, "rows": [1], "max_difference": 0.4375},
    "timing_ms": {"queue": 0, "run": 1, "total": 2},
}


class Seen(dict[str, Any]):
    """The last request: its headers and body; and how many there were."""


@contextmanager
def answering(*statuses: int, **changes: Any) -> Iterator[tuple[str, Seen]]:
    """Answer with one status after the other, the last one for ever; yields the address and what was seen."""
    seen = Seen(count=0)
    content = json.dumps({**ANSWER, **changes, "error": "not now", "code": "not_now"}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses[min(seen["count"], len(statuses) - 1)]
            seen.update(count=seen["count"] + 1, headers=dict(self.headers), body=body, path=self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUGSERVE_API_KEY", raising=False)
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(b"content of " + name.encode())
    return ["a.png", "b.png"]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_retries, "FIRST_WAIT_S", 0.0)


def test_what_was_asked_is_sent(run: Run, images: list[str]) -> None:
    with answering(200) as (url, seen):
        flags = ["--model-name", "tiny", "--compare", "--api-key", "mine", "--json"]
        done = run("predict", *images, "--url", url, *flags)
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == {**ANSWER, "error": "not now", "code": "not_now"}
    assert seen["headers"]["Authorization"] == "Bearer mine"
    for part in (
        b"content of a.png",
        b"content of b.png",
        b'name="model"\r\n\r\ntiny',
        b'name="compare"\r\n\r\ntrue',
    ):
        assert part in seen["body"]


def test_what_was_not_asked_is_not_sent(run: Run, images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200) as (url, seen):
        assert run("predict", *images, "--url", url).status == 0
        assert "Authorization" not in seen["headers"]
        for name in (b"compare", b"model", b"top_k", b"tracking", b"blend"):
            assert b'name="' + name not in seen["body"]
        monkeypatch.setenv("AUGSERVE_API_KEY", "theirs")
        assert run("predict", *images, "--url", url).status == 0
        assert seen["headers"]["Authorization"] == "Bearer theirs"


def test_a_comparison_is_shown_beside(run: Run, images: list[str]) -> None:
    with answering(200) as (url, _):
        done = run("predict", *images, "--url", url, "--compare")
    assert done.status == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.out.splitlines() if "png" in line]
    assert rows == [
        ["a.png", "bee", "0.750", "0", "bee", "0.500"],
        ["b.png", "ant", "0.500", "0", "[cow] (differs)", "0.625"],
    ]
    assert "model tiny, statistics batch, group sizes 2\n" in done.out
    assert "with tracked statistics: another class for 1 of 2 (50%), probabilities differ by at most 0.438\n" in (
        done.out
    )
    assert done.err == "warning: group 0 has one row\n"


def test_without_a_comparison_nothing_is_beside(run: Run, images: list[str]) -> None:
    with answering(200, comparison=None, warnings=[]) as (url, _):
        done = run("predict", *images, "--url", url)
    assert (done.status, done.err) == (0, "")
    assert "tracked" not in done.out


@pytest.mark.parametrize(("flags", "tries"), [([], 4), (["--retries", 0], 1), (["--retries", 2], 3)])
def test_a_full_server_is_tried_again(run: Run, images: list[str], flags: list[object], tries: int) -> None:
    with answering(503) as (url, seen):
        told = one_line(run("predict", *images, "--url", url, *flags), 1)
        assert seen["count"] == tries
    assert told.startswith(f"error: {url} answered 503: not now")
    with answering(503, 429, 200) as (url, seen):
        assert run("predict", *images, "--url", url).status == 0
        assert seen["count"] == 3


@pytest.mark.parametrize("flag", [["--api-key", "mine"], ["--model-name", "tiny"], ["--retries", 1]])
def test_flags_of_a_server_need_one(run: Run, images: list[str], flag: list[object]) -> None:
    told = one_line(run("predict", *images, "--model", "a.onnx", *flag), 2)
    assert f"{flag[0]} is of a server; leave it out with --model" in told


def test_a_key_that_cannot_be_sent_is_not_shown(run: Run, images: list[str]) -> None:
    told = one_line(run("predict", *images, "--url", "http://127.0.0.1:1", "--api-key", "sec ret"), 2)
    assert "sec" not in told.replace("spaces", "")


def test_an_address_that_is_none_is_status_2(run: Run, images: list[str]) -> None:
    assert "expected an address such as" in one_line(run("predict", *images, "--url", "http://a\tb"), 2)
