"""The whole way by commands: train, export, info, predict with a file and with a server."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from augserve.data import load_dataset
from augserve.norms import use_statistics
from augserve.runtime import open_session, read_manifest
from augserve.statistics import Statistics
from augserve.training import load_run
from augserve.training.batches import Normalize
from tests.cli.conftest import IMAGES, Round, Run, one_line


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
        native = told.pop("native")
        assert native["library"] or native["reason"]
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


def test_a_comparison_holds_both_answers(run: Run, finished: Round) -> None:
    asked = ["--batch-size", 2]
    both = predictions(run, finished, "--no-tracking", "--compare", *asked)
    own, tracked = (predictions(run, finished, mode, *asked) for mode in ("--no-tracking", "--tracking"))
    np.testing.assert_allclose(probabilities(both), probabilities(own), atol=1e-6)
    labels = [[one["label"] for one in answer["predictions"]] for answer in (own, tracked)]
    assert [one["tracked"]["label"] for one in both["predictions"]] == labels[1]
    differing = [k for k, (a, b) in enumerate(zip(*labels, strict=True)) if a != b]
    assert both["comparison"]["rows"] == differing
    assert both["comparison"]["disagreement"] == pytest.approx(len(differing) / IMAGES)
    largest = np.abs(probabilities(own) - probabilities(tracked)).max()
    assert both["comparison"]["max_difference"] == pytest.approx(largest, abs=1e-5)


def test_the_table_shows_each_image_and_what_was_dropped(
    run: Run, finished: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a path of any length in one line
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
    assert f"error: {name}: no whole augserve manifest" in told


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
        ["--no-tracking", "--batch-size", 4, "--compare"],
    ],
)
def test_a_server_gives_the_same_answer(run: Run, finished: Round, url: str, flags: list[object]) -> None:
    here, there = predictions(run, finished, *flags), predictions(run, finished, *flags, "--url", url)
    np.testing.assert_allclose(probabilities(there), probabilities(here), atol=1e-6)
    assert there["statistics"] == here["statistics"]
    beside = [answer.pop("comparison", {"rows": []}) for answer in (here, there)]
    assert ("--compare" in flags) == (len(beside[0]) > 1)
    assert beside[0].pop("rows") == beside[1].pop("rows")
    assert beside[0] == pytest.approx(beside[1], abs=1e-6)
    assert there["model"] == here["model"] == "adaptive"
    assert [one["label"] for one in there["predictions"]] == [one["label"] for one in here["predictions"]]


def test_the_refusal_of_a_server_is_one_line(run: Run, finished: Round, url: str) -> None:
    told = one_line(run("predict", *finished.images, "--url", url, "--batch-size", 4, "--remainder", "error"), 1)
    assert "10 rows do not divide into groups of 4" in told
