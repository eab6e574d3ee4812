"""One small training run, exported and served: what the tests of the command line share."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from PIL import Image

from augserve.cli import app, main
from augserve.data import load_dataset

COMMANDS = sorted(typer.main.get_command(app).commands)
AUGSERVE = [sys.executable, "-W", "error", "-m", "augserve"]
IMAGES = 10


class Done(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def call(*arguments: object) -> Done:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return Done(caught.value.code, *capsys.readouterr())

    return call


class Round(NamedTuple):
    """A finished round: the working folder with runs/first, its exports and images, and what was printed."""

    folder: Path
    adaptive: Path
    tracked: Path
    images: list[Path]
    trained: str
    exported: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Round:
    folder = tmp_path_factory.mktemp("round")
    data = load_dataset("digits")
    images = [folder / f"test{k}.png" for k in range(IMAGES)]
    for path, pixels in zip(images, data.test_images, strict=False):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)

    def printed(*arguments: str) -> str:
        with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        return out.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained = printed("train", "--epochs", "1", "--phi", "1.5", "--device", "cpu", "--out", "runs/first")
        exported = printed("export", "adaptive.onnx")
        printed("export", "tracked.onnx", "--run", "runs/first", "--mode", "tracked")
    return Round(folder, folder / "adaptive.onnx", folder / "tracked.onnx", images, trained, exported)


@pytest.fixture(scope="session")
def url(finished: Round) -> Iterator[str]:
    """A server of the adaptive file, as a process of its own."""
    command = [*AUGSERVE, "serve", str(finished.adaptive), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            ready = next(line for line in server.stdout if " at http" in line)
            yield re.search(r"http://\S+", ready)[0]
        finally:
            server.send_signal(signal.SIGTERM)
            out, err = server.communicate(timeout=60)
    assert (server.returncode, out, err) == (0, "stopped\n", "")


def one_line(done: Done, status: int) -> str:
    """See that a command failed as it should; return its words."""
    assert done.status == status, done
    assert re.fullmatch(r"error: [^\n]+\n", done.err), done.err
    assert "Traceback" not in done.err
    assert "internal error" not in done.err
    return done.err


# --- help and usage --------------------------------------------------------------------------------------
