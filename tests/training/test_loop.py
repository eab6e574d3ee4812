"""Training: the schedule's shape, what a seed fixes, and that whatever fails leaves no half-written file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from augserve.data import ImageSet
from augserve.errors import ConfigurationError, RunError, TrainingError
from augserve.training import EpochMetrics, Run, TrainConfig, load_run, train
from augserve.training.loop import schedule
from tests.training.conftest import Trainer

FILES = ["config.json", "examples.safetensors", "metrics.jsonl", "model.safetensors"]


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


@pytest.mark.parametrize("steps", [10, 100, 1293])
def test_cosine_warms_up_in_a_line_and_falls_to_zero(steps: int) -> None:
    factor = schedule("cosine", steps)
    warm_up = int(0.2 * steps)
    assert [factor(k) for k in range(warm_up)] == [(k + 1) / warm_up for k in range(warm_up)]
    falling = [factor(k) for k in range(warm_up, steps + 1)]
    assert falling[0] == 1
    assert all(after < before for before, after in pairwise(falling))
    assert falling[-1] == pytest.approx(0, abs=1e-12)
    assert factor(warm_up + (steps - warm_up) // 2) == pytest.approx(0.5, abs=1.6 / (steps - warm_up))


def test_step_falls_to_a_tenth_and_a_hundredth() -> None:
    factor = schedule("step", 8)
    assert [factor(k) for k in range(8)] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]


@pytest.mark.parametrize("name", ["cosine", "step"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_short_schedules_are_positive_factors(name: str, steps: int) -> None:
    factors = [schedule(name, steps)(k) for k in range(steps)]
    assert all(0 < value <= 1 for value in factors)
    assert max(factors) == 1


def test_the_network_is_trained_with_the_schedule(trained: Run) -> None:
    lines = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    factor = schedule("cosine", 6)  # 2 epochs of 3 batches; the rate of an epoch is that of its last step
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.1 * factor(2), 0.1 * factor(5)])


def test_training_learns(trainer: Trainer, tmp_path: Path) -> None:
    run = load_run(trainer(tmp_path / "run", epochs=6, learning_rate=0.05))
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train_loss"] < 0.6 * lines[0]["train_loss"]


def test_a_run_holds_its_files_and_nothing_else(trained: Run) -> None:
    assert names(trained.folder) == FILES
    document = json.loads((trained.folder / "config.json").read_text())
    assert document["metrics"]["epoch"] == 2
    assert set(document["metrics"]["test_accuracy"]) == {"tracked", "batch"}


@pytest.mark.parametrize("norm", ["aug", "batch"])
def test_the_seed_fixes_the_checkpoint_bit_by_bit(trainer: Trainer, tmp_path: Path, norm: str) -> None:
    checkpoints = []
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        torch.rand(7)  # what ran before must not matter
        np.random.default_rng().random(3)
        folder = trainer(tmp_path / name, norm=norm, seed=seed)
        checkpoints.append((folder / "model.safetensors").read_bytes())
    assert checkpoints[0] == checkpoints[1]
    assert checkpoints[0] != checkpoints[2]


def test_progress_is_told_of_every_step_and_epoch(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[object, ...]] = []

    class Listener:
        def start(self, config: TrainConfig, data: ImageSet, parameters: int, device: str) -> None:
            told.append(("start", data.name, device))
            assert parameters > 200_000

        def step(self, epoch: int, done: int, total: int, loss: float) -> None:
            told.append(("step", epoch, done, total))
            assert math.isfinite(loss)

        def epoch(self, metrics: EpochMetrics) -> None:
            told.append(("epoch", metrics.epoch, names(tmp_path / "run")))

    monkeypatch.setattr("augserve.training.loop.load_dataset", lambda *_: images)
    config = TrainConfig(norm="batch", epochs=2, batch_size=32, device="cpu")
    train(config, tmp_path / "run", progress=Listener())
    expected: list[tuple[object, ...]] = [("start", "small", "cpu")]
    for epoch in (1, 2):
        expected += [("step", epoch, 32, 48), ("step", epoch, 48, 48), ("epoch", epoch, FILES)]
    assert told == expected


def test_a_loss_that_is_not_finite_ends_training(trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch 1 .*lower --learning-rate"):
        trainer(tmp_path / "run", learning_rate=1e38, norm="none", epochs=2)
    assert set(names(tmp_path / "run")) <= {"examples.safetensors"}
    with pytest.raises(RunError, match="half-written run"):
        load_run(tmp_path / "run")


def test_a_last_step_into_nan_is_not_kept_as_a_finished_epoch(trainer: Trainer, tmp_path: Path) -> None:
    """One step an epoch: its loss is finite, and the weights after it are not."""
    with pytest.raises(TrainingError):
        trainer(tmp_path / "run", learning_rate=1e38, norm="none", epochs=1, batch_size=48)


def test_a_failed_run_keeps_its_last_finished_epoch(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    cross_entropy = torch.nn.functional.cross_entropy

    def worsening(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return cross_entropy(logits, labels) * (math.nan if len(calls) == 5 else 1)

    monkeypatch.setattr("augserve.training.loop.F.cross_entropy", worsening)
    with pytest.raises(TrainingError, match="the loss is nan in epoch 2 after 16 images"):
        trainer(tmp_path / "run", epochs=3)
    run = load_run(tmp_path / "run")
    assert run.metrics["epoch"] == 1
    assert names(run.folder) == FILES


@pytest.mark.parametrize("failing", ["model.safetensors", "metrics.jsonl", "config.json"])
def test_a_failed_write_leaves_a_run_that_can_be_read(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The disk is full in the second epoch: what is left is one epoch's checkpoint with its own metrics."""
    replace_file = Path.replace
    seen = []

    def full(path: Path, target: Path) -> Path:
        if Path(target).name == failing:
            seen.append(target)
            if len(seen) == 2:
                raise OSError(28, "No space left on device")
        return replace_file(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        trainer(tmp_path / "run", epochs=2)
    assert names(tmp_path / "run") == FILES
    assert load_run(tmp_path / "run").metrics["epoch"] == (2 if failing == "metrics.jsonl" else 1)


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"not empty; choose another --out, or give --overwrite"):
        trainer(tmp_path)
    assert names(tmp_path) == ["notes.txt"]


def test_overwrite_replaces_the_run_and_nothing_else(trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for name in FILES:
        (tmp_path / name).write_text("old")
    trainer(tmp_path, overwrite=True)
    assert names(tmp_path) == sorted([*FILES, "notes.txt"])
    assert load_run(tmp_path).metrics["epoch"] == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_place_of_the_folder_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for folder in (tmp_path / "run", tmp_path / "run" / "inside"):
        with pytest.raises(RunError, match="cannot be used for a run"):
            trainer(folder)
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused_before_anything_is_made(trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="device 'cuda' asked for, but torch finds none"):
        trainer(tmp_path / "run", device="cuda")
    assert names(tmp_path) == []


def test_a_set_of_one_grey_channel_trains(trainer: Trainer, images: ImageSet, tmp_path: Path) -> None:
    grey = {f"{part}_images": getattr(images, f"{part}_images")[:, :1] for part in ("train", "val", "test")}
    run = load_run(trainer(tmp_path / "run", data=replace(images, **grey, mean=(0.4,), std=(0.3,))))
    assert run.examples.shape == (16, 1, 16, 16)
    assert run.describe()["preprocessing"]["color"] == "L"
