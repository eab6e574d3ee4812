"""`augserve bench serve`: a server of its own, one that runs, and one whose every answer is known; no times."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import orjson
import pytest

from augserve.bench.bare import BareRuns
from augserve.bench.serve import ServeBench
from augserve.bench.server_process import ServerProcess, family
from augserve.bench.traffic import DIFFERENT, MODES, WEIGHTS, Traffic
from augserve.bench.wire import address_of
from augserve.cli import main
from augserve.errors import AugserveError, ConfigurationError, RemoteError
from augserve.runtime import open_session, run_rows
from tests.service.tiny import SHAPE, running, wait_until, write_model

QUICK = ["--seconds", "0.2", "--warm-up-s", "0.1", "--rounds", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.onnx")


class Known:
    """A server that answers with `statuses` in turn once it has been tried, and keeps what it was sent."""

    def __init__(self, *statuses: int) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.answered = Counter[int]()
        self._next = itertools.chain(itertools.repeat(200, DIFFERENT), itertools.cycle(statuses or [200]))
        self._lock = threading.Lock()
        known = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with known._lock:
                    status = next(known._next)
                    known.bodies.append(body)
                    known.headers.append(dict(self.headers))
                    known.answered[status] += 1
                self._answer(status, b"{}")

            def do_GET(self) -> None:
                runs = sum(known.answered.values())
                texts = {
                    "/readyz": '{"model": "tiny"}',
                    "/v2/models/tiny": json.dumps({"inputs": [{"shape": [-1, *SHAPE]}]}),
                    "/metrics": f'# HELP augserve_rows_per_run Rows.\naugserve_rows_per_run_bucket{{le="1"}} 0\n'
                    f'augserve_rows_per_run_sum{{model="a"}} {3 * runs}\n'
                    f'augserve_rows_per_run_count{{model="a"}} {runs}\naugserve_rows_per_run_sum{{model="b"}} 7\n',
                }
                self._answer(200, texts[self.path].encode())

            def _answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def known(request: pytest.FixtureRequest) -> Iterator[Known]:
    known = Known(*getattr(request, "param", ()))
    thread = threading.Thread(target=known.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield known
    known.server.shutdown()
    thread.join()
    known.server.server_close()


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "serve", *map(str, arguments)])
    return caught.value.code


def test_json_of_a_server_that_is_started_from_a_file(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loads = ["--lone", 6, "--rate", 60, "--callers", 3, "--rows-per-run", 4, "--rows", 2]
    assert (
        call(model, *loads, *QUICK, "--modes", "tracked,mixed", "--threads", 1, "--header", "X-Key: k", "--json")
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    results = answer["results"]
    modes = ["tracked", "mixed"]
    assert [(row["load"], row["mode"]) for row in results] == [
        (load, mode) for load in ("lone", "open", "closed") for mode in modes
    ]
    for row in results[:2]:
        assert (row["pairs"], row["errors"]) == (6, {})
        for times in (row["service_ms"], row["bare_ms"], row["added_ms"]):
            assert times[0] <= times[1]
        assert row["bare_ms"][0] > 0
    for row in results[2:]:
        counted = row["tally"]
        assert counted["errors"] == {}
        assert counted["rows_per_s"] == pytest.approx(2 * counted["requests"] / 0.4)
        assert 0 < counted["p50_ms"] <= counted["p90_ms"] <= counted["p99_ms"] <= counted["max_ms"]
        assert row["generator_cores"] > 0
    for row in results[4:]:
        assert row["rows_per_run"] is not None
        assert row["bare_rows_per_s"] > 0
        assert row["of_bare"] > 0
    assert [row["ratio"] for row in results[2::2]] == [1, 1]
    assert answer["server"]["ready_s"] > 0
    if Path("/proc/self/status").exists():
        assert answer["server"]["peak_mib"] > 10
    assert "headers" not in answer["traffic"]
    with socket.socket() as probe:  # it has stopped
        assert probe.connect_ex(address_of(answer["server"]["url"])) != 0


def test_lines_of_a_server_that_runs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(model) as client:
        assert call(model, "--url", client.base_url, "--lone", 2, "--rate", 60, *QUICK) == 0
        lone, load = capsys.readouterr().out.splitlines()
        assert client.get("/readyz").status_code == 200  # it was not started here, and runs on
    number = r"-?[\d.]+"
    assert re.fullmatch(f"lone, tracked: (.+ p50 {number}, p99 {number} ms; ){{3}}2 pairs", lone)
    assert re.fullmatch(rf"open, tracked: {number} rows/s \(1\.00\), \d+ requests; p50 .+ ms", load)


@pytest.mark.parametrize("known", [(200, 429, 503)], indirect=True)
def test_every_answer_is_counted_by_its_status(known: Known) -> None:
    traffic = Traffic(seconds=0.3, rounds=1, warm_up_s=0, headers={"X-Key": "k"})
    with ServeBench(url=known.url, traffic=traffic) as bench:
        assert bench.shape == tuple(SHAPE)
        assert known.answered == {200: DIFFERENT}
        (row,) = bench.open_loop(400)
        assert row.tally.errors == {"429": known.answered[429], "503": known.answered[503]}
        assert known.answered[429] > 0
        (row,) = bench.saturate(callers=3)
    assert set(row.tally.errors) == {"429", "503"}
    assert row.rows_per_run == 3  # what was there before the turn does not count
    assert row.bare_rows_per_s is None
    assert {headers["X-Key"] for headers in known.headers} == {"k"}
    assert len(set(known.bodies)) == DIFFERENT


@pytest.mark.parametrize("known", [(500,)], indirect=True)
def test_lone_errors_are_no_times(known: Known, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--url", known.url, "--lone", 3, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert (row["pairs"], row["errors"]) == (0, {"500": 3})
    assert row["service_ms"] == [None, None]
    assert row["bare_ms"] is row["added_ms"] is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_requests_ask_for_what_the_bare_run_does(model: Path, mode: str, batch_size: int | None) -> None:
    traffic = Traffic(modes=[mode], rows=5, batch_size=batch_size)
    requests = traffic.requests(mode, SHAPE)
    asked = [orjson.loads(request.body) for request in requests]
    rows = np.array([body.pop("instances") for body in asked], np.float32)
    assert rows.shape == (DIFFERENT, 5, *SHAPE)
    assert len(np.unique(rows[:, 0, 0, 0, 0])) == DIFFERENT
    group, weight = traffic.groups(mode, DIFFERENT)
    session = open_session(model, threads=1)
    together = run_rows(session, rows.reshape(-1, *SHAPE), group, weight).reshape(DIFFERENT, 5, -1)
    with running(model) as client:
        for request, expected in zip(requests, together, strict=True):
            body = orjson.dumps({**orjson.loads(request.body), "return": ["logits"]})
            answer = client.post(request.path, content=body, headers={"Content-Type": request.content_type}).json()
            assert answer["statistics"]["mode"] == mode or mode == "mixed"
            came = [row["logits"] for row in answer["predictions"]]
            np.testing.assert_allclose(came, expected, atol=1e-5)


def test_npy_bodies_hold_the_same_rows_and_settings() -> None:
    texts, arrays = (Traffic(body=body, rows=3, batch_size=2).requests("mixed", SHAPE) for body in ("json", "npy"))
    for text, array in zip(texts, arrays, strict=True):
        asked = orjson.loads(text.body)
        np.testing.assert_array_equal(np.load(io.BytesIO(array.body)), np.float32(asked.pop("instances")))
        asked |= asked.pop("blend", {})
        query = {name: orjson.loads(value) for name, (value,) in parse_qs(urlsplit(array.path).query).items()}
        assert query == asked
        assert urlsplit(array.path).path == text.path
        assert array.content_type == "application/octet-stream"


def test_bare_runs_leave_out_modes_that_the_file_has_not(model: Path, tmp_path: Path) -> None:
    folded = write_model(tmp_path / "folded.onnx", "tracked")
    traffic = Traffic(seconds=0.01, warm_up_s=0)
    for mode in MODES:
        assert BareRuns(model, 1).loop(traffic, mode, 6, SHAPE) > 0
        speed = BareRuns(folded, 1).loop(traffic, mode, 6, SHAPE)
        assert speed > 0 if mode == "tracked" else speed is None
    assert set(WEIGHTS) == set(MODES) - {"mixed"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", 5], "a file to serve, or --url"),
        (["--url", "http://127.0.0.1:9"], "one or more of --rate"),
        (["--url", "https://127.0.0.1:9", "--rate", 5], "a URL such as"),
        (["--url", "http://127.0.0.1:9", "--shape", "3x8x8", "--rate", 5], "could not reach"),
        (["--url", "http://127.0.0.1:9", "--shape", "3x8x8", "--modes", "global", "--rate", 5], "mode of a load"),
        (["--url", "http://127.0.0.1:9", "--body", "xml", "--rate", 5], "choose one of: json, npy"),
        (["--url", "http://127.0.0.1:9", "--rows", 0, "--rate", 5], "rows of at least 1; got 0"),
        (["--url", "http://127.0.0.1:9", "--seconds", "nan", "--rate", 5], "seconds above 0"),
        (["--url", "http://127.0.0.1:9", "--header", "X", "--rate", 5], "NAME:VALUE"),
        (["none.onnx", "--rate", 5], "nothing"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_error(
    arguments: list[object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) != 0
    assert re.search(rf"^error: .*{re.escape(words)}", capsys.readouterr().err)


def test_impossible_loads_are_refused(known: Known) -> None:
    with ServeBench(url=known.url, shape=SHAPE) as bench:
        for load in (
            lambda: bench.open_loop(0),
            lambda: bench.saturate(0),
            lambda: bench.saturate(1, math.nan),
            lambda: bench.lone(0),
            lambda: bench.lone(1, -1),
        ):
            with pytest.raises(ConfigurationError, match="expected"):
                load()
        assert known.answered == {200: DIFFERENT}


def test_a_request_that_the_server_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    folded = write_model(tmp_path / "folded.onnx", "tracked")
    traffic = Traffic(modes=["batch"])
    with running(folded) as client, pytest.raises(RemoteError, match=r"422.*tracked statistics only"):
        ServeBench(folded, url=str(client.base_url), traffic=traffic)


def test_a_server_that_stops_or_never_answers_leaves_nothing_behind() -> None:
    with pytest.raises(ConfigurationError, match="before it was ready: last words"):
        ServerProcess([sys.executable, "-c", "print('first'); print('last words')"])
    held = "import signal, sys; print('here', flush=True); signal.pause()"
    with pytest.raises(RemoteError, match=r"did not answer 200 within 0\.5 s: here"):
        ServerProcess([sys.executable, "-c", held], ready_s=0.5)
    assert issubclass(RemoteError, AugserveError)


def state_of(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only /proc tells of the children of a process")
def test_a_process_that_a_server_started_ends_with_it() -> None:
    serving = (
        "import subprocess, sys\n"
        "from http.server import HTTPServer, SimpleHTTPRequestHandler\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "HTTPServer(('127.0.0.1', int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()"
    )
    with ServerProcess([sys.executable, "-c", serving, "{port}"], ready="/") as server:
        alone = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        ours, *children = family(server.pid)
        assert ours == server.pid
        assert len(children) == 1
        assert alone.pid not in children
        assert server.peak_mib() > 10
    assert alone.poll() is None
    alone.kill()
    alone.wait()
    wait_until(lambda: state_of(children[0]) in (None, "Z"))
