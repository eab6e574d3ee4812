"""A run comes back as it was saved; whatever is wrong with its folder is a RunError that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from augserve.data import ImageSet
from augserve.errors import RunError
from augserve.manifest import Preprocessing
from augserve.models import build_model
from augserve.norms import norm_layers
from augserve.training import Run, TrainConfig, load_run
from augserve.training.batches import Normalize
from augserve.training.run import default_folder, point_latest
from tests.training.conftest import Trainer

NEEDED = ["config.json", "model.safetensors", "examples.safetensors"]


@pytest.fixture
def copy(trained: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.folder, tmp_path / "run"))


def refusal(folder: Path) -> str:
    with pytest.raises(RunError) as caught:
        load_run(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    return message


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / "config.json").read_text())
    edit(document)
    (folder / "config.json").write_text(json.dumps(document))


def test_round_trip_gives_the_same_network_and_knowledge(trained: Run, images: ImageSet) -> None:
    assert trained.config == TrainConfig(norm="aug", phi=1.25, epochs=2, batch_size=16, device="cpu")
    assert (trained.classes, trained.mean, trained.std) == (images.classes, images.mean, images.std)
    expected = Normalize(images.mean, images.std)(torch.from_numpy(images.val_images))
    assert torch.equal(trained.examples, expected)
    assert not trained.model.training
    assert {layer.phi for layer in norm_layers(trained.model).values()} == {1.25}
    twin = build_model("resnet20", 3, 3, "aug", {"phi": 1.25}).eval()
    twin.load_state_dict(safetensors.torch.load_file(trained.folder / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(trained.model(trained.examples), twin(trained.examples))


def test_loading_twice_gives_the_same_logits(trained: Run) -> None:
    again = load_run(str(trained.folder))
    with torch.no_grad():
        assert torch.equal(again.model(trained.examples), trained.model(trained.examples))
    assert again.checkpoint_sha256 == trained.checkpoint_sha256


def test_the_logits_are_those_of_the_network_that_was_trained(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(*arguments: Any) -> torch.nn.Module:
        built.append(build_model(*arguments))
        return built[-1]

    monkeypatch.setattr("augserve.training.loop.build_model", build)
    run = load_run(trainer(tmp_path / "run", norm="robust"))
    with torch.no_grad():
        np.testing.assert_allclose(run.model(run.examples), built[0].eval()(run.examples), rtol=1e-5, atol=1e-5)


def test_describe_is_what_a_manifest_takes(trained: Run) -> None:
    told = trained.describe()
    assert (told["architecture"], told["classes"], told["data"]) == (
        "resnet20",
        ["dark", "grey", "bright"],
        "digits",
    )
    assert told["checkpoint_sha256"] == trained.checkpoint_sha256
    preprocessing = Preprocessing.model_validate(told["preprocessing"])
    assert (preprocessing.height, preprocessing.width, preprocessing.color) == (16, 16, "RGB")
    assert (tuple(preprocessing.mean), tuple(preprocessing.std)) == (trained.mean, trained.std)


def test_a_missing_folder_says_how_to_make_a_run(tmp_path: Path) -> None:
    assert "no such run; `augserve train` makes one" in refusal(tmp_path / "none")
    (tmp_path / "file").write_text("text")
    assert "no such run" in refusal(tmp_path / "file")


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert f"half-written run: {name} is missing" in refusal(copy)
    (copy / name).mkdir()
    assert f"{name} is missing" in refusal(copy)


@pytest.mark.parametrize("name", NEEDED)
def test_a_truncated_file_is_named(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 2):
        (copy / name).write_bytes(whole[:length])
        assert name in refusal(copy)


@pytest.mark.parametrize("content", [b"not json", b"\xff\xfe\x00", b"[]", b"null", b"1", b"[" * 100_000, b"{}"])
def test_a_config_of_another_kind_is_named(copy: Path, content: bytes) -> None:
    (copy / "config.json").write_bytes(content)
    assert "config.json is damaged" in refusal(copy)


@pytest.mark.parametrize("key", ["format_version", "config", "data", "checkpoint_sha256", "metrics"])
def test_a_config_without_one_of_its_parts_is_named(copy: Path, key: str) -> None:
    change(copy, lambda document: document.pop(key))
    assert "config.json is damaged" in refusal(copy)
    assert key in refusal(copy)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d["config"].update(norm="foo"), "config.json: unknown norm 'foo'; choose one of: aug"),
        (lambda d: d["config"].update(norm={}), "config.json is damaged"),
        (lambda d: d["config"].update(epochs="two"), "config.json is damaged"),
        (lambda d: d["config"].update(epochs=0), "config.json: epochs must be at least 1"),
        (lambda d: d["config"].update(warp=1), "config.json: settings of a newer augserve: warp"),
        (lambda d: d.update(config=[]), "config.json"),
        (lambda d: d.update(data=None), "config.json is damaged"),
        (lambda d: d["data"].update(shape=[]), "config.json is damaged"),
        (lambda d: d["data"].update(shape=[3]), "config.json is damaged"),
        (lambda d: d["data"].update(mean=["dark"]), "config.json is damaged"),
        (lambda d: d["data"].update(classes=3), "config.json is damaged"),
        (lambda d: d.update(metrics=3), "config.json is damaged"),
        (lambda d: d.update(format_version="new"), "config.json is damaged"),
    ],
)
def test_a_config_that_makes_no_sense_is_named(
    copy: Path, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    change(copy, edit)
    assert words in refusal(copy)


def test_a_newer_format_is_told_from_damage(copy: Path) -> None:
    change(copy, lambda document: document.update(format_version=2))
    assert refusal(copy) == f"{copy}: config.json: format 2 is newer than 1; upgrade augserve"


def test_a_newer_format_of_another_layout_is_told_from_damage(copy: Path) -> None:
    (copy / "config.json").write_text('{"format_version": 2, "settings": {}}')
    assert "format 2 is newer than 1; upgrade augserve" in refusal(copy)


def test_the_checkpoint_of_another_run_is_refused(copy: Path, trainer: Trainer, tmp_path: Path) -> None:
    other = trainer(tmp_path / "other", norm="aug", phi=1.25, seed=1)
    shutil.copy(other / "model.safetensors", copy)
    assert "model.safetensors is not the checkpoint that config.json describes" in refusal(copy)


def test_a_checkpoint_of_another_network_is_refused(copy: Path, trainer: Trainer, tmp_path: Path) -> None:
    """Its hash is right: config.json was changed by hand."""
    other = trainer(tmp_path / "other", norm="none", learning_rate=1e-3)
    document = json.loads((other / "config.json").read_text())
    shutil.copy(other / "model.safetensors", copy)
    change(copy, lambda mine: mine.update(checkpoint_sha256=document["checkpoint_sha256"]))
    assert "model.safetensors is damaged" in refusal(copy)


def test_examples_without_rows_are_refused(copy: Path) -> None:
    safetensors.torch.save_file({"columns": torch.zeros(2, 3, 16, 16)}, copy / "examples.safetensors")
    assert "examples.safetensors" in refusal(copy)


@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(()),
        torch.zeros(2, 3),
        torch.zeros(0, 3, 16, 16),
        torch.zeros(2, 1, 16, 16),
        torch.zeros(2, 3, 16, 16).double(),
    ],
)
def test_examples_that_are_no_rows_of_this_run_are_refused(copy: Path, rows: torch.Tensor) -> None:
    safetensors.torch.save_file({"rows": rows}, copy / "examples.safetensors")
    assert "examples.safetensors" in refusal(copy)


def test_default_folder_names_the_settings() -> None:
    assert default_folder(TrainConfig(norm="batch")).match("runs/digits-resnet20-batch-????????-??????")


def test_latest_points_to_the_last_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "elsewhere/second"):
        (tmp_path / name).mkdir(parents=True)
        assert point_latest(Path(name)) is None  # stopped before its first epoch was over
        (tmp_path / name / "config.json").touch()
        assert point_latest(Path(name)) == Path("runs/latest")
        assert (tmp_path / "runs" / "latest").resolve() == tmp_path / name


@pytest.mark.parametrize("name", ["runs", "runs/latest"])
def test_latest_is_left_out_where_its_name_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("a file")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    assert point_latest(Path("run")) is None
    assert (tmp_path / name).read_text() == "a file"
