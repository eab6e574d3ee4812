"""A training run on disk: one folder, each of its files written in one step.

config.json         settings, classes, preprocessing, metrics of the last finished epoch
model.safetensors   parameters and buffers after that epoch
examples.safetensors  real rows of the validation part, preprocessed: the exporter proves parity on them
metrics.jsonl       one line an epoch
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from augserve.data import ImageSet, load_dataset
from augserve.errors import AugserveError, RunError
from augserve.files import link_atomic, write_atomic
from augserve.models import build_model
from augserve.training.batches import Normalize
from augserve.training.config import TrainConfig

FORMAT_VERSION = 1
CONFIG, MODEL, EXAMPLES, METRICS = "config.json", "model.safetensors", "examples.safetensors", "metrics.jsonl"


@dataclass(frozen=True)
class Run:
    """A trained network and what is known of it.

    Args:
        folder: of the run.
        config: its settings.
        model: the network, in eval mode, on the CPU.
        examples: float32 (N, C, H, W), real preprocessed rows.
        classes: class names in label order.
        mean, std: per channel in pixel scale [0, 1].
        metrics: of the last finished epoch.
        checkpoint_sha256: of model.safetensors.
    """

    folder: Path
    config: TrainConfig
    model: nn.Module
    examples: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metrics: dict[str, Any]
    checkpoint_sha256: str

    def describe(self) -> dict[str, Any]:
        """Return what an exported file should say of this run, as `augserve.manifest.Manifest` names it."""
        channels, height, width = self.examples.shape[1:]
        return {
            "architecture": self.config.model,
            "classes": list(self.classes),
            "data": self.config.data,
            "checkpoint_sha256": self.checkpoint_sha256,
            "preprocessing": {
                "height": height,
                "width": width,
                "color": "RGB" if channels == 3 else "L",
                "mean": list(self.mean),
                "std": list(self.std),
            },
        }

    def validation_rows(self) -> tuple[Tensor, Tensor]:
        """Return the validation part of the run's data set: preprocessed rows (N, C, H, W), labels int64 (N,).

        Raises:
            DataError: the data set is not where it was.
        """
        data = load_dataset(self.config.data, self.config.data_dir)
        rows = Normalize(self.mean, self.std)(torch.from_numpy(data.val_images))
        return rows, torch.from_numpy(data.val_labels)


def default_folder(config: TrainConfig) -> Path:
    """Return a folder under runs/ that names the settings and the moment."""
    moment = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.data}-{config.model}-{config.norm}-{moment}"


def point_latest(folder: Path) -> Path | None:
    """Make runs/latest of the working folder point to the run; None where that cannot be done."""
    latest = Path("runs") / "latest"
    try:
        if not (folder / CONFIG).is_file():  # stopped before its first epoch was over
            return None
        if latest.exists() and not latest.is_symlink():
            return None
        latest.parent.mkdir(exist_ok=True)
        link_atomic(latest, folder.resolve())
    except OSError:  # a working folder that may not be written, or one with a file named runs
        return None
    return latest


def prepare_folder(folder: Path, *, overwrite: bool) -> None:
    """Make the folder of a new run.

    Raises:
        RunError: it holds a run or other files, and `overwrite` is not set, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = sorted(child.name for child in folder.iterdir())
        if present and not overwrite:
            raise RunError(
                f"{folder}: not empty; choose another --out, or give --overwrite to replace the run there"
            )
        for name in (CONFIG, MODEL, EXAMPLES, METRICS):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be used for a run ({error.strerror})") from None


@dataclass(frozen=True)
class Checkpoint:
    """A model as it will be written, and the metrics of the epoch that made it."""

    content: bytes
    metrics: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of the content, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


def make_checkpoint(model: nn.Module, metrics: dict[str, Any]) -> Checkpoint:
    """Return the model's parameters and buffers as the content of a safetensors file."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return Checkpoint(safetensors.torch.save(state), metrics)


def save(folder: Path, config: TrainConfig, data: ImageSet, new: Checkpoint, old: Checkpoint | None) -> None:
    """Write config.json and model.safetensors so that a stop at any moment leaves a run that can be read.

    config.json goes first and describes both checkpoints, the new one and the one that is still there.
    """
    document: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "config": config.to_json(),
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "shape": list(data.shape),
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "checkpoint_sha256": new.sha256,
        "metrics": new.metrics,
    }
    if old is not None:
        document["previous"] = {"checkpoint_sha256": old.sha256, "metrics": old.metrics}
    write_atomic(folder / CONFIG, (json.dumps(document, indent=2) + "\n").encode())
    write_atomic(folder / MODEL, new.content)


def save_examples(folder: Path, rows: Tensor) -> None:
    """Write the rows that the exporter will prove parity on."""
    write_atomic(folder / EXAMPLES, safetensors.torch.save({"rows": rows.cpu().contiguous()}))


def load_run(folder: str | Path) -> Run:
    """Read a run.

    Args:
        folder: of the run, such as runs/latest.

    Raises:
        RunError: no such folder, a run that is not finished or is damaged, or one of a newer version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run; `augserve train` makes one")
    for name in (CONFIG, MODEL, EXAMPLES):
        if not (folder / name).is_file():
            raise RunError(f"{folder}: half-written run: {name} is missing; train it again")
    try:
        document = json.loads((folder / CONFIG).read_text())
        version = document["format_version"]
        if version > FORMAT_VERSION:
            raise RunError(f"format {version} is newer than {FORMAT_VERSION}; upgrade augserve")
        config = TrainConfig.from_json(document["config"])
        data = document["data"]
        classes = tuple(str(name) for name in data["classes"])
        mean, std = (tuple(float(value) for value in data[key]) for key in ("mean", "std"))
        channels, height, width = (int(size) for size in data["shape"])
        described = {
            str(checkpoint["checkpoint_sha256"]): dict(checkpoint["metrics"])
            for checkpoint in (document.get("previous"), document)
            if checkpoint is not None
        }
    except AugserveError as error:
        raise RunError(f"{folder}: {CONFIG}: {error}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise RunError(f"{folder}: {CONFIG} is damaged ({type(error).__name__}: {error}); train it again") from None
    content = (folder / MODEL).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest not in described:
        raise RunError(f"{folder}: {MODEL} is not the checkpoint that {CONFIG} describes; train it again")
    options = dict(config.norm_options)
    model = build_model(config.model, len(classes), channels, config.norm, options, config.conv_norm)
    name = MODEL
    try:
        model.load_state_dict(safetensors.torch.load(content))
        name = EXAMPLES
        examples = safetensors.torch.load((folder / EXAMPLES).read_bytes())["rows"]
    except (SafetensorError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{folder}: {name} is damaged ({reason}); train it again") from None
    shape = (channels, height, width)
    if examples.dtype != torch.float32 or examples.shape[1:] != shape or not len(examples):
        raise RunError(
            f"{folder}: {EXAMPLES}: expected float32 rows (N, {channels}, {height}, {width}) with N >= 1; "
            f"got {examples.dtype} {tuple(examples.shape)}; train it again"
        )
    return Run(folder, config, model.eval(), examples, classes, mean, std, described[digest], digest)
