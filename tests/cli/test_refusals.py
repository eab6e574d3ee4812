"""The command line's help, refusals, statuses and streams: one line on stderr, never a traceback unasked."""

from __future__ import annotations

import os
import pty
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

import augserve
from augserve.data import list_datasets
from augserve.models import list_models
from augserve.norms import list_norms
from tests.cli.conftest import AUGSERVE, COMMANDS, Done, Round, Run, one_line
from tests.service.tiny import write_model


def test_help_lists_every_command(run: Run) -> None:
    for flag in ("--help", "-h"):
        done = run(flag)
        assert (done.status, done.err) == (0, "")
        assert all(f"\n  {command} " in done.out for command in COMMANDS)
        assert "augserve train --data digits" in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_holds_an_example(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert (done.status, done.err) == (0, "")
    examples = done.out.split("Examples:\n")[1].split("\n\n")[0].splitlines()
    assert examples
    assert all(line.startswith(f"    augserve {command}") for line in examples)


def test_help_of_train_lists_every_choice(run: Run) -> None:
    told = re.sub(r"\s", "", run("train", "--help").out)
    listed = [set(names.split(",")) for names in re.findall(r":([\w,-]+)\.", told)]
    for choices in (list_norms(), list_models(), list_datasets()):
        assert set(choices) in listed


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"augserve {augserve.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["train", "--nothing"],
        ["train", "--epochs", "many"],
        ["export"],
        ["predict"],
        ["predict", "a.png", "--top-k", "all"],
    ],
)
def test_wrong_usage_is_status_2_with_a_hint(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    assert "Usage: augserve" in done.err


@pytest.mark.parametrize(
    ("flag", "choices"), [("--norm", list_norms()), ("--model", list_models()), ("--data", list_datasets())]
)
def test_an_unknown_name_is_status_2_with_the_choices(
    run: Run, tmp_path: Path, flag: str, choices: tuple[str, ...]
) -> None:
    told = one_line(run("train", flag, "foo", "--out", tmp_path / "run"), 2)
    assert f"'foo'; choose one of: {', '.join(sorted(choices))}\n" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--phi", "0.5"], "phi"),
        (["--norm", "batch", "--phi", "1.5"], "norm 'batch' does not take 'phi'"),
        (["--epochs", "0"], "epochs must be at least 1; got 0"),
        (["--lr", "nan"], "learning_rate"),
        (["--device", "tpu"], "choose one of: auto, cpu, cuda"),
    ],
)
def test_a_setting_out_of_range_is_status_2(run: Run, tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in one_line(run("train", *arguments, "--out", tmp_path / "run"), 2)


@pytest.mark.parametrize("given", [[], ["--model", "a.onnx", "--url", "http://127.0.0.1:1"]])
def test_predict_takes_one_of_model_and_url(run: Run, given: list[str]) -> None:
    assert "expected one of --model FILE and --url URL" in one_line(run("predict", "a.png", *given), 2)


@pytest.mark.parametrize("blend", [["--prior", "4"], ["--tracked-weight", "0.5"]])
@pytest.mark.parametrize("tracking", ["--tracking", "--no-tracking"])
def test_predict_takes_one_of_tracking_and_blend(run: Run, tracking: str, blend: list[str]) -> None:
    told = one_line(run("predict", "a.png", "--model", "a.onnx", tracking, *blend), 2)
    assert "expected --tracking/--no-tracking or a blend; got both" in told


def test_an_unknown_file_mode_is_status_2_with_the_choices(run: Run, tmp_path: Path) -> None:
    told = one_line(run("export", tmp_path / "a.onnx", "--mode", "fast"), 2)
    assert "unknown file mode 'fast'; choose one of: adaptive, batch, tracked" in told


# --- what cannot be read or written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "file"), [("cifar10", "data_batch_1"), ("fashion-mnist", "train-images-idx3-ubyte")]
)
def test_missing_data_names_what_was_looked_for(run: Run, tmp_path: Path, data: str, file: str) -> None:
    for folder, words in ((tmp_path / "none", "found nothing"), (tmp_path / "empty", file)):
        (tmp_path / "empty").mkdir(exist_ok=True)
        told = one_line(run("train", "--data", data, "--data-dir", folder, "--out", tmp_path / "run"), 1)
        assert str(folder) in told
        assert words in told
    assert not (tmp_path / "run").exists()


def test_train_into_a_used_folder_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    told = one_line(run("train", "--out", tmp_path), 1)
    assert f"{tmp_path}: not empty" in told
    assert [child.name for child in tmp_path.iterdir()] == ["notes.txt"]


def test_export_of_a_missing_run_is_refused(run: Run, tmp_path: Path) -> None:
    told = one_line(run("export", tmp_path / "a.onnx", "--run", tmp_path / "none"), 1)
    assert f"{tmp_path / 'none'}: no such run" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "examples.safetensors"])
def test_export_of_a_half_written_run_is_refused(run: Run, finished: Round, tmp_path: Path, name: str) -> None:
    half = Path(shutil.copytree(finished.folder / "runs" / "first", tmp_path / "half"))
    (half / name).unlink()
    told = one_line(run("export", tmp_path / "a.onnx", "--run", half), 1)
    assert f"half-written run: {name} is missing" in told
    assert not (tmp_path / "a.onnx").exists()


def test_export_into_a_missing_folder_is_refused(run: Run, finished: Round, tmp_path: Path) -> None:
    told = one_line(run("export", tmp_path / "none" / "a.onnx", "--run", finished.folder / "runs" / "first"), 1)
    assert f"{tmp_path / 'none'}: no such folder" in told


def test_export_onto_a_folder_is_refused(run: Run, finished: Round, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    first = finished.folder / "runs" / "first"
    told = one_line(run("export", tmp_path / "taken", "--run", first, "--mode", "tracked"), 1)
    assert str(tmp_path / "taken") in told
    assert [child.name for child in tmp_path.iterdir()] == ["taken"]


@pytest.fixture(params=["text", "foreign", "cut", "missing", "folder", "long"])
def bad_file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "bad.onnx"
    if request.param == "text":
        path.write_text("not a model")
        return path, "not an ONNX file"
    if request.param == "foreign":
        return write_model(path, manifest=False), "without an augserve manifest"
    if request.param == "cut":
        whole = write_model(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        return path, "not an ONNX file"
    if request.param == "folder":
        path.mkdir()
        return path, "found a folder"
    if request.param == "long":
        return tmp_path / ("a" * 300 + ".onnx"), "a" * 300
    return path, "found nothing"


@pytest.mark.parametrize("command", ["info", "serve", "predict"])
def test_a_bad_file_is_one_line(run: Run, finished: Round, bad_file: tuple[Path, str], command: str) -> None:
    path, words = bad_file
    arguments = {
        "info": ["info", path],
        "serve": ["serve", path, "--port", "0"],
        "predict": ["predict", finished.images[0], "--model", path],
    }[command]
    if command == "serve" and words == "found a folder":  # a repository, and an empty one
        words = "expected a model that can be served; found none"
    told = one_line(run(*arguments), 1)
    assert str(path) in told
    assert words in told


@pytest.mark.parametrize("content", [b"", b"just text\n", b"\x89PNG\r\n\x1a\n and no more"])
def test_an_image_that_is_none_is_named(run: Run, finished: Round, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "no.png").write_bytes(content)
    told = one_line(run("predict", finished.images[0], tmp_path / "no.png", "--model", finished.adaptive), 1)
    assert f"error: {tmp_path / 'no.png'}: expected a" in told


def test_an_image_that_is_none_is_counted_by_a_server(run: Run, finished: Round, url: str, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("just text")
    told = one_line(run("predict", finished.images[0], tmp_path / "no.png", "--url", url), 1)
    assert "row 1: expected a PNG, JPEG or WebP image" in told


@pytest.mark.parametrize("name", ["none.png", "folder", "none/deeper.png", "a" * 300])
def test_an_image_that_cannot_be_read_is_named(run: Run, finished: Round, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    told = one_line(run("predict", tmp_path / name, "--model", finished.adaptive), 1)
    assert f"{tmp_path / name}: cannot be read" in told


def test_a_server_that_is_not_there_is_named(run: Run, finished: Round) -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        told = one_line(run("predict", finished.images[0], "--url", address), 1)
    assert f"could not reach {address}" in told
    assert "not a url" in one_line(run("predict", finished.images[0], "--url", "not a url"), 1)


def test_serve_on_a_port_in_use_is_one_line(run: Run, finished: Round) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = one_line(run("serve", finished.adaptive, "--port", port), 2)
    assert f"cannot listen on 127.0.0.1:{port}" in told


def test_serve_without_a_file_says_what_to_give(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUGSERVE_MODEL", raising=False)
    assert "AUGSERVE_MODEL" in one_line(run("serve"), 2)


def test_debug_shows_the_traceback_as_well(run: Run, tmp_path: Path) -> None:
    quiet, loud = (run("info", tmp_path / "none.onnx", *flags) for flags in ([], ["--debug"]))
    assert loud.status == quiet.status == 1
    assert loud.err.startswith("Traceback (most recent call last):")
    assert loud.err.endswith(quiet.err)


def test_a_defect_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def defect(*_: object) -> None:
        raise LookupError("first line\nsecond line")

    monkeypatch.setattr("augserve.runtime.open_session", defect)
    done = run("info", tmp_path)
    words = "internal error: LookupError: first line second line (add --debug for the traceback)"
    assert done == (1, "", f"error: {words}\n")


def test_a_full_disk_is_no_defect(
    run: Run, monkeypatch: pytest.MonkeyPatch, finished: Round, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    first = finished.folder / "runs" / "first"
    assert "No space left on device" in one_line(
        run("export", tmp_path / "a.onnx", "--run", first, "--mode", "tracked"), 1
    )
    assert list(tmp_path.iterdir()) == []


def test_interrupt_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("augserve.runtime.open_session", interrupt)
    done = run("info", tmp_path)
    assert done.status == 130
    assert "Traceback" not in done.err


# --- a process of its own --------------------------------------------------------------------------------


def process(*arguments: object, **environment: str) -> Done:
    command = [*AUGSERVE, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_process_ends_with_the_same_statuses(tmp_path: Path) -> None:
    assert process("--version") == (0, f"augserve {augserve.__version__}\n", "")
    one_line(process("info", tmp_path / "none.onnx"), 1)
    one_line(process("predict", "a.png"), 2)


def on_terminal(*arguments: object, **environment: str) -> str:
    """Run a command on a terminal; return what it shows there."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    command = [*AUGSERVE, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**kept, "TERM": "xterm-256color", **environment}
    ) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            shown += part
        os.close(ours)
        child.wait(timeout=60)
    return shown.decode()


def test_no_color_leaves_no_escape_codes(finished: Round, tmp_path: Path) -> None:
    for arguments in (["info", finished.adaptive], ["info", tmp_path / "none.onnx"]):
        assert "\x1b[" in on_terminal(*arguments)
        plain = on_terminal(*arguments, NO_COLOR="1", COLUMNS="300")  # wide enough for any path
        assert "\x1b" not in plain
        assert str(arguments[1]) in plain


def test_output_that_is_no_terminal_has_no_escape_codes(finished: Round) -> None:
    assert "\x1b" not in finished.trained + finished.exported


def test_a_terminal_that_knows_ascii_only_gets_a_table(finished: Round) -> None:
    done = process("info", finished.adaptive, PYTHONIOENCODING="ascii")
    assert (done.status, done.err) == (0, "")
    assert done.out.isascii()


def test_a_reader_that_goes_away_is_no_traceback(finished: Round) -> None:
    command = [*AUGSERVE, "info", str(finished.adaptive), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        child.stdout.close()
        err = child.stderr.read()
        assert child.wait(timeout=60) != 0
    assert err == ""


# --- a whole round ---------------------------------------------------------------------------------------
