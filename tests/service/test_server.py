"""The server as a process: it starts clearly or not at all, and SIGTERM loses no accepted request."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from augserve.errors import ConfigurationError, ModelFileError
from augserve.service import read_settings, serve
from tests.service.tiny import some_rows, wait_until, write_model

BODY = {"instances": some_rows(2).tolist()}

HELD_SERVER = """
import sys
from augserve.service import read_settings, serve
from augserve.service.queue import scheduler
run = scheduler.run_together
def held(form, pieces, **how):
    print("running", flush=True)
    sys.stdin.readline()
    return run(form, pieces, **how)
scheduler.run_together = held
scheduler.AT_ONCE_S = 0  # in a thread: it takes its time
serve(read_settings(model=sys.argv[1], port=0, threads=1), on_ready=lambda url: print(url, flush=True))
print("drained", flush=True)
"""

LOADING_SERVER = """
import signal, sys
from augserve.service import server
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
def never(service):
    print("loading", flush=True)
    sys.stdin.readline()
server.Service.load = never
server.serve(server.Settings(model="tiny.onnx", port=0))
print("stopped", flush=True)
"""


@contextmanager
def start(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a script, which does not outlive its test."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_sigterm_lets_accepted_requests_finish_and_refuses_new_ones(model: Path) -> None:
    with start(HELD_SERVER, model) as process, ThreadPoolExecutor(1) as pool:
        url = process.stdout.readline().strip()
        with (
            httpx.Client(base_url=url, timeout=20) as client,
            httpx.Client(base_url=url, timeout=20) as other,
        ):
            assert client.get("/readyz").status_code == 200
            accepted = pool.submit(other.post, "/predict", json=BODY)
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/readyz").status_code == 503)
            refused = httpx.post(f"{url}/predict", json=BODY, timeout=20)
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
            assert client.get("/healthz").status_code == 200
            assert not accepted.done()
            out, err = process.communicate("go\n", timeout=20)
            assert accepted.result(20).status_code == 200
    assert (process.returncode, out, err) == (0, "drained\n", "")


def test_sigterm_stops_an_idle_server_with_status_0(model: Path) -> None:
    with start(HELD_SERVER, model) as process:
        url = process.stdout.readline().strip()
        with httpx.Client(base_url=url) as client:
            assert client.get("/healthz").status_code == 200  # and the connection stays open
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "drained\n", "")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_a_server_that_still_loads(kind: signal.Signals) -> None:
    with start(LOADING_SERVER) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(kind)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "stopped\n", "")


def test_port_in_use_is_one_clear_error(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}.*another port"):
            serve(read_settings(model=model, port=port))
    with pytest.raises(ConfigurationError, match="choose another port"):
        serve(read_settings(model=model, host="203.0.113.1"))


def test_bad_file_is_one_clear_error_before_anything_listens(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"not a model")
    plain = write_model(tmp_path / "plain.onnx", manifest=False)
    for path, words in (
        (damaged, "not an ONNX file"),
        (plain, "manifest"),
        (tmp_path / "none.onnx", "nothing"),
    ):
        with pytest.raises(ModelFileError, match=words):
            serve(read_settings(model=path, port=0))
    with pytest.raises(ConfigurationError, match="unknown execution provider"):
        serve(read_settings(model=plain, port=0, providers="MagicExecutionProvider"))


def test_service_and_client_import_neither_torch_nor_onnx() -> None:
    script = (
        "import sys, augserve.client, augserve.service.app, augserve.service.server\n"
        "print(sorted({'torch', 'onnx', 'onnxscript', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
