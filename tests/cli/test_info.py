"""`augserve info` without a file: what is installed here, and the native library."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

import augserve
from augserve import native
from tests.cli.conftest import Run, one_line


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (native.CHOICE_VARIABLE, native.LIBRARY_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def told(run: Run, *flags: str) -> str:
    done = run("info", *flags)
    assert (done.status, done.err) == (0, "")
    return done.out


def test_versions_are_those_installed(run: Run) -> None:
    installation = json.loads(told(run, "--json"))
    assert (installation["augserve"], installation["python"]) == (augserve.__version__, platform.python_version())
    assert installation["packages"]["torch"] == version("torch")
    assert installation["packages"]["onnx"] == version("onnx")
    assert set(installation["packages"]) == {"torch", "onnx", "onnxruntime", "onnxruntime-gpu"}


def test_a_table_has_a_line_for_each(run: Run) -> None:
    lines = dict(line.split(maxsplit=1) for line in told(run).splitlines())
    assert lines["augserve"] == augserve.__version__
    assert lines["torch"] == version("torch")
    assert None not in map(lines.get, ("python", "onnx", "native", "state"))


def test_the_native_library_is_told_of(run: Run) -> None:
    status = native.describe()
    installation = json.loads(told(run, "--json"))
    assert installation["native"] == {
        "state": status.state,
        "path": None if status.path is None else str(status.path),
        "abi": status.abi,
        "instruction_set": status.instruction_set,
        "reason": status.reason,
    }
    text = told(run)
    assert str(status.path or "none") in text
    assert (status.instruction_set or status.reason) in text


def test_that_it_is_missing_comes_with_the_way_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_installed", list)
    text = told(run)
    assert "native library   none\n" in text
    assert "install a C++ compiler (Debian: apt-get install g++), then: " in text


def test_that_it_is_switched_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.CHOICE_VARIABLE, "off")
    assert "state            off\n" in told(run)
    assert "AUGSERVE_NATIVE=off" in told(run)


def test_that_it_cannot_be_used(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_text("text")
    monkeypatch.setenv(native.LIBRARY_VARIABLE, str(path))
    status = json.loads(told(run, "--json"))["native"]
    assert (status["state"], status["path"]) == ("unusable", str(path))
    assert "unset AUGSERVE_NATIVE_LIBRARY" in status["reason"]


def test_another_choice_is_status_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.CHOICE_VARIABLE, "yes")
    assert "choose one of: auto, off, on" in one_line(run("info"), 2)
