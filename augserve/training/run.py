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
from safetensors import SafetensorError
from torch import Tensor, nn

from augserve.errors import AugserveError, RunError
from augserve.files import link_atomic, write_atomic
from augserve.models import build_model
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


def default_folder(config: TrainConfig) -> Path:
    """Return a folder under runs/ that names the settings and the moment."""
    moment = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.data}-{config.model}-{config.norm}-{moment}"


def point_latest(folder: Path) -> Path | None:
    """Make runs/latest of the working folder point to the run; None where something else has that name."""
    latest = Path("runs") / "latest"
    if latest.exists() and not latest.is_symlink():
        return None
    latest.parent.mkdir(exist_ok=True)
    link_atomic(latest, folder.resolve())
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


def save_model(folder: Path, model: nn.Module) -> str:
    """Write model.safetensors and return its SHA-256."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    content = safetensors.torch.save(state)
    write_atomic(folder / MODEL, content)
    return hashlib.sha256(content).hexdigest()


def save_examples(folder: Path, rows: Tensor) -> None:
    """Write the rows that the exporter will prove parity on."""
    write_atomic(folder / EXAMPLES, safetensors.torch.save({"rows": rows.cpu().contiguous()}))


def save_config(folder: Path, config: TrainConfig, description: dict[str, Any]) -> None:
    """Write config.json, last of a run's files: what it describes is there."""
    document = {"format_version": FORMAT_VERSION, "config": config.to_json(), **description}
    write_atomic(folder / CONFIG, (json.dumps(document, indent=2) + "\n").encode())


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
            raise RunError(f"{folder}: format {version} is newer than {FORMAT_VERSION}; upgrade augserve")
        config = TrainConfig.from_json(document["config"])
        data = document["data"]
        classes = tuple(str(name) for name in data["classes"])
        mean, std = (tuple(float(value) for value in data[key]) for key in ("mean", "std"))
        channels = int(data["shape"][0])
        recorded = str(document["checkpoint_sha256"])
        metrics = dict(document["metrics"])
    except AugserveError as error:
        raise RunError(f"{folder}: {CONFIG}: {error}") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RunError(f"{folder}: {CONFIG} is damaged ({type(error).__name__}: {error}); train it again") from None
    content = (folder / MODEL).read_bytes()
    if hashlib.sha256(content).hexdigest() != recorded:
        raise RunError(f"{folder}: {MODEL} is not the checkpoint that {CONFIG} describes; train it again")
    model = build_model(config.model, len(classes), channels, config.norm, dict(config.norm_options))
    try:
        model.load_state_dict(safetensors.torch.load(content))
        examples = safetensors.torch.load((folder / EXAMPLES).read_bytes())["rows"]
    except (SafetensorError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{folder}: a checkpoint file is damaged ({reason}); train it again") from None
    return Run(folder, config, model.eval(), examples, classes, mean, std, metrics, recorded)
