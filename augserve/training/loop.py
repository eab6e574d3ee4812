"""The training loop: SGD with momentum, one readable path from data to a saved run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augserve.data import ImageSet, load_dataset
from augserve.errors import ConfigurationError, TrainingError
from augserve.files import write_atomic
from augserve.models import build_model
from augserve.norms import norm_layers
from augserve.norms.modes import fast_in_channels_last
from augserve.training import run as runs
from augserve.training.batches import Normalize, training_batches
from augserve.training.config import TrainConfig
from augserve.training.evaluate import accuracy_by_mode, default_mode

WARM_UP = 0.2  # of all steps, for the cosine schedule
EXAMPLES = 64  # rows kept for the exporter's parity report


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch came to; accuracies in [0, 1]."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_accuracy: float
    learning_rate: float
    images_per_second: float


@dataclass(frozen=True)
class TrainResult:
    """Where the run is and what it reached: test accuracy in [0, 1] by statistics mode."""

    folder: Path
    val_accuracy: float
    test_accuracy: dict[str, float]
    images_per_second: float


class Progress(Protocol):
    """Who wants to see how training goes."""

    def start(self, config: TrainConfig, data: ImageSet, parameters: int, device: str) -> None:
        """Training begins."""

    def step(self, epoch: int, done: int, total: int, loss: float) -> None:
        """`done` of the epoch's `total` training rows have been seen."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch has ended and its checkpoint is on disk."""


class _Silent:
    def start(self, config: TrainConfig, data: ImageSet, parameters: int, device: str) -> None: ...
    def step(self, epoch: int, done: int, total: int, loss: float) -> None: ...
    def epoch(self, metrics: EpochMetrics) -> None: ...


def train(
    config: TrainConfig, folder: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> TrainResult:
    """Train a network and keep the run.

    Args:
        config: the settings.
        folder: of the run; made if it is not there.
        overwrite: replace a run that is there.
        progress: told of every step and epoch.

    Returns:
        Validation accuracy in the network's default mode and test accuracy in each mode.

    Raises:
        RunError: the folder is not empty or cannot be used.
        DataError: the data set is missing or damaged.
        TrainingError: the loss is not finite.
        ConfigurationError: device "cuda" without one.
    """
    progress = progress or _Silent()
    device = _device(config.device)
    data = load_dataset(config.data, config.data_dir)
    folder = Path(folder)
    runs.prepare_folder(folder, overwrite=overwrite)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    options = dict(config.norm_options)
    model = build_model(config.model, len(data.classes), data.shape[0], config.norm, options, config.conv_norm)
    model.to(device, memory_format=_memory_format(model))  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        _parameter_groups(model),
        config.peak_learning_rate,
        config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )
    steps = config.epochs * math.ceil(len(data.train_labels) / config.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(config.schedule, steps))
    progress.start(config, data, sum(p.numel() for p in model.parameters()), str(device))
    normalize = Normalize(data.mean, data.std)
    runs.save_examples(folder, normalize(torch.from_numpy(data.val_images[:EXAMPLES])))

    history: list[EpochMetrics] = []
    checkpoint: runs.Checkpoint | None = None
    for epoch in range(1, config.epochs + 1):
        metrics = _train_epoch(epoch, model, optimizer, scheduler, data, config, device, generator, progress)
        history.append(metrics)
        _require_finite(model, epoch)
        checkpoint, previous = runs.make_checkpoint(model, asdict(metrics)), checkpoint
        runs.save(folder, config, data, checkpoint, previous)
        write_atomic(folder / runs.METRICS, "".join(json.dumps(asdict(m)) + "\n" for m in history).encode())
        progress.epoch(metrics)

    test = accuracy_by_mode(model, data.test_images, data.test_labels, normalize, config.batch_size, device)
    final = runs.make_checkpoint(model, {**asdict(history[-1]), "test_accuracy": test})
    runs.save(folder, config, data, final, None)
    speed = sum(m.images_per_second for m in history) / len(history)
    return TrainResult(folder, history[-1].val_accuracy, test, speed)


def _train_epoch(
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    data: ImageSet,
    config: TrainConfig,
    device: torch.device,
    generator: torch.Generator,
    progress: Progress,
) -> EpochMetrics:
    model.train()
    begin = time.perf_counter()
    total = len(data.train_labels)
    seen, loss_sum, correct = 0, 0.0, 0
    learning_rate = 0.0
    layout = _memory_format(model)
    for rows, labels in training_batches(data, config.batch_size, device, generator):
        learning_rate = float(scheduler.get_last_lr()[0])
        logits: Tensor = model(rows.contiguous(memory_format=layout))
        loss = F.cross_entropy(logits, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} in epoch {epoch} after {seen} images; lower --learning-rate "
                f"(now {learning_rate:.3g}) or choose another norm; {_kept(epoch)}"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        seen += len(rows)
        loss_sum += value * len(rows)
        correct += int((logits.argmax(1) == labels).sum())
        progress.step(epoch, seen, total, value)
    seconds = time.perf_counter() - begin
    normalize = Normalize(data.mean, data.std)
    mode = default_mode(model)
    val = accuracy_by_mode(
        model, data.val_images, data.val_labels, normalize, config.batch_size, device, modes=(mode,)
    )
    return EpochMetrics(epoch, loss_sum / seen, correct / seen, val[mode], learning_rate, seen / seconds)


def schedule(name: str, steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate as a function of the step, for `steps` steps in all."""

    def cosine(step: int) -> float:
        warm_up = max(1, int(WARM_UP * steps))
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    def step_down(step: int) -> float:
        return 1.0 if step < steps / 2 else 0.1 if step < 3 * steps / 4 else 0.01

    return cosine if name == "cosine" else step_down


def _parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters for SGD; a learned exponent has no reason to decay toward the middle of its range."""
    named = dict(model.named_parameters())
    exponents = [value for name, value in named.items() if name.endswith("phi_logit")]
    others = [value for name, value in named.items() if not name.endswith("phi_logit")]
    return [{"params": others}, {"params": exponents, "weight_decay": 0.0}] if exponents else [{"params": others}]


def _memory_format(model: nn.Module) -> torch.memory_format:
    """Return channels-last where every norm is fast in it, as convolutions are.

    Measured with resnet20 and 128 images on one CPU core, milliseconds a step: batch 243 against 281, robust 230
    against 255, aug 251 against 283.
    """
    fast = all(map(fast_in_channels_last, norm_layers(model).values()))
    return torch.channels_last if fast else torch.contiguous_format


def _require_finite(model: nn.Module, epoch: int) -> None:
    """Refuse to keep a network that the last step of an epoch broke: no later loss would say so."""
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise TrainingError(
                f"{name} holds NaN or inf after epoch {epoch}; lower --learning-rate; {_kept(epoch)}"
            )


def _kept(epoch: int) -> str:
    return f"the run keeps epoch {epoch - 1}" if epoch > 1 else "no epoch was finished"


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device 'cuda' asked for, but torch finds none; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
