"""The command line: exit statuses, one line for whatever fails, and a whole round from training to an answer."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import augserve
from augserve.cli import app, main
from augserve.data import list_datasets, load_dataset
from augserve.models import list_models
from augserve.norms import list_norms, use_statistics
from augserve.runtime import open_session, read_manifest
from augserve.statistics import Statistics
from augserve.training import load_run
from augserve.training.batches import Normalize
from tests.service.tiny import write_model

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


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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
        ["info"],
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
        plain = on_terminal(*arguments, NO_COLOR="1")
        assert "\x1b" not in plain
        assert str(arguments[1])[-9:] in plain


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


def predictions(run: Run, finished: Round, *flags: object, model: Path | None = None) -> dict[str, Any]:
    where = [] if "--url" in flags else ["--model", model or finished.adaptive]
    done = run("predict", *finished.images, *where, *flags, "--json")
    assert (done.status, done.err) == (0, "")
    return json.loads(done.out)


def probabilities(answer: dict[str, Any]) -> np.ndarray:
    return np.array([one["probabilities"] for one in answer["predictions"]])


def test_training_tells_what_it_did(finished: Round) -> None:
    assert "resnet20 with norm aug phi=1.5 (269,722 parameters) on digits: 1,293 training" in finished.trained
    assert re.search(r"validation accuracy \d+\.\d\d%", finished.trained)
    assert "run kept in runs/first (runs/latest points to it)" in finished.trained
    assert (finished.folder / "runs" / "latest").resolve() == finished.folder / "runs" / "first"


def test_export_tells_of_its_parity(finished: Round) -> None:
    assert "mixed groups and modes" in finished.exported
    assert re.search(r"wrote adaptive\.onnx \(\d\.\d\d MB, mode adaptive\)", finished.exported)


def test_info_as_json_is_the_manifest(run: Run, finished: Round) -> None:
    for path, mode in ((finished.adaptive, "adaptive"), (finished.tracked, "tracked")):
        done = run("info", path, "--json")
        assert (done.status, done.err) == (0, "")
        told = json.loads(done.out)
        assert told == read_manifest(open_session(path), path).model_dump(mode="json")
        assert (told["mode"], told["data"], told["shape"]) == (mode, "digits", [3, 32, 32])
        digest = load_run(finished.folder / "runs" / "first").checkpoint_sha256
        assert told["checkpoint_sha256"] == digest


def test_info_shows_every_value_whole(run: Run, finished: Round) -> None:
    done = run("info", finished.adaptive)
    assert (done.status, done.err) == (0, "")
    digest = load_run(finished.folder / "runs" / "first").checkpoint_sha256
    assert digest in re.sub(r"\s", "", done.out)
    assert str(finished.adaptive) in re.sub(r"\s", "", done.out)
    assert "19 AugNorm2d (phi 1.5)" in done.out


@pytest.mark.parametrize(
    ("flag", "statistics"), [("--tracking", Statistics("tracked")), ("--no-tracking", Statistics("batch"))]
)
def test_an_answer_is_that_of_the_network(run: Run, finished: Round, flag: str, statistics: Statistics) -> None:
    trained = load_run(finished.folder / "runs" / "first")
    pixels = torch.from_numpy(load_dataset("digits").test_images[:IMAGES])
    with torch.no_grad(), use_statistics(trained.model, statistics):
        expected = trained.model(Normalize(trained.mean, trained.std)(pixels)).softmax(1)
    answer = predictions(run, finished, flag)
    np.testing.assert_allclose(probabilities(answer), expected, atol=1e-4)
    assert answer["statistics"]["mode"] == statistics.mode
    labels = [trained.classes[k] for k in expected.argmax(1)]
    assert [one["label"] for one in answer["predictions"]] == labels


def test_the_two_modes_differ_and_blends_lie_at_their_ends(run: Run, finished: Round) -> None:
    tracked, batch, one, zero, half, prior = (
        probabilities(predictions(run, finished, *flags))
        for flags in (
            ["--tracking"],
            ["--no-tracking"],
            ["--tracked-weight", 1],
            ["--tracked-weight", 0],
            ["--tracked-weight", 0.5],
            ["--prior", IMAGES],
        )
    )
    assert np.abs(tracked - batch).max() > 0.01
    assert np.abs(half - batch).max() > 1e-3
    np.testing.assert_allclose(one, tracked, atol=1e-6)
    np.testing.assert_allclose(zero, batch, atol=1e-6)
    np.testing.assert_allclose(prior, half, atol=1e-6)


def test_a_file_of_one_mode_gives_it_and_refuses_the_other(run: Run, finished: Round) -> None:
    folded = predictions(run, finished, model=finished.tracked)
    adaptive = predictions(run, finished, "--tracking")
    np.testing.assert_allclose(probabilities(folded), probabilities(adaptive), atol=1e-4)
    told = one_line(run("predict", finished.images[0], "--model", finished.tracked, "--no-tracking"), 1)
    assert "serves tracked statistics only" in told


@pytest.mark.parametrize(
    ("remainder", "groups", "dropped"),
    [("own", [4, 4, 2], []), ("merge", [4, 6], []), ("drop", [4, 4], [8, 9]), (None, [4, 4, 2], [])],
)
def test_groups_are_as_asked_for(
    run: Run, finished: Round, remainder: str | None, groups: list[int], dropped: list[int]
) -> None:
    flags = ["--no-tracking", "--batch-size", 4, *(["--remainder", remainder] if remainder else [])]
    answer = predictions(run, finished, *flags)
    assert (answer["statistics"]["groups"], answer["statistics"]["dropped"]) == (groups, dropped)
    first_four = run("predict", *finished.images[:4], "--model", finished.adaptive, "--no-tracking", "--json")
    alone = probabilities(json.loads(first_four.out))
    np.testing.assert_allclose(probabilities(answer)[:4], alone, atol=1e-6)


def test_a_remainder_can_be_an_error(run: Run, finished: Round) -> None:
    flags = ["--model", finished.adaptive, "--batch-size", 4, "--remainder", "error"]
    assert "10 rows do not divide into groups of 4" in one_line(run("predict", *finished.images, *flags), 1)


@pytest.mark.parametrize(
    "flags",
    [["--remainder", "keep"], ["--batch-size", 0], ["--top-k", 0], ["--tracked-weight", 1.5], ["--prior", -1]],
)
def test_a_request_out_of_range_is_status_2(run: Run, finished: Round, flags: list[object]) -> None:
    told = one_line(run("predict", finished.images[0], "--model", finished.adaptive, *flags), 2)
    assert str(flags[1]) in told


def test_top_k_are_the_most_probable_classes(run: Run, finished: Round) -> None:
    answer = predictions(run, finished, "--top-k", 3)
    for one in answer["predictions"]:
        best = sorted(one["probabilities"], reverse=True)[:3]
        assert [entry["probability"] for entry in one["top_k"]] == best
        assert one["top_k"][0]["label"] == one["label"]


def test_the_table_shows_each_image_and_what_was_dropped(run: Run, finished: Round) -> None:
    flags = ["--no-tracking", "--batch-size", 4, "--remainder", "drop", "--top-k", 2]
    done = run("predict", *finished.images, "--model", finished.adaptive, *flags)
    assert (done.status, done.err) == (0, "")
    shown = re.sub(r"[\s│]", "", done.out)
    answer = predictions(run, finished, *flags)
    for path, one in zip(finished.images, answer["predictions"], strict=False):
        assert path.name in done.out
        assert all(f"{entry['probability']:.3f}" in shown for entry in one["top_k"])
    assert done.out.count("dropped: ") == 2
    assert f"dropped: {finished.images[9]}\n" in done.out
    assert "statistics batch, group sizes 4, 4\n" in done.out


@pytest.mark.parametrize("name", ["a[bold]b.png", ":bug:.png", "[.png", "very-" * 30 + "long.png"])
def test_names_are_shown_as_they_are(
    run: Run, finished: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copy(finished.images[0], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    done = run("predict", name, "--model", finished.adaptive)
    assert done.status == 0
    cells = [line.split("│")[1].strip() for line in done.out.splitlines() if line.startswith("│")]
    assert "".join(cells) == name  # a long one is folded over several lines
    told = one_line(run("info", name), 1)
    assert f"error: {name}: not an ONNX file" in told


def test_a_path_with_brackets_is_written_and_shown(
    run: Run, finished: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d[").mkdir()
    first = finished.folder / "runs" / "first"
    done = run("export", "d[/x].onnx", "--run", first, "--mode", "tracked")
    assert (done.status, done.err) == (0, "")
    assert "wrote d[/x].onnx (" in done.out
    assert "d[/x].onnx" in run("info", "d[/x].onnx").out


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--tracking"],
        ["--no-tracking", "--batch-size", 4, "--remainder", "merge"],
        ["--tracked-weight", 0.25, "--batch-size", 5],
        ["--prior", 8, "--batch-size", 4, "--remainder", "drop", "--top-k", 2],
    ],
)
def test_a_server_gives_the_same_answer(run: Run, finished: Round, url: str, flags: list[object]) -> None:
    here, there = predictions(run, finished, *flags), predictions(run, finished, *flags, "--url", url)
    np.testing.assert_allclose(probabilities(there), probabilities(here), atol=1e-6)
    assert there["statistics"] == here["statistics"]
    assert there["model"] == here["model"] == "adaptive"
    assert [one["label"] for one in there["predictions"]] == [one["label"] for one in here["predictions"]]


def test_the_refusal_of_a_server_is_one_line(run: Run, finished: Round, url: str) -> None:
    told = one_line(run("predict", *finished.images, "--url", url, "--batch-size", 4, "--remainder", "error"), 1)
    assert "10 rows do not divide into groups of 4" in told
