"""How fast a whole network is with each norm: a training step beside torch's BatchNorm2d, inference in each mode.

Every contestant takes its turn in every round of one process, so that a machine that slows down slows all of them;
times are medians over the rounds, ratios medians of the ratios within a round. All networks have the same weights
and the same data, and begin every training step from them.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augserve.errors import ConfigurationError, unknown_choice
from augserve.models import build_model, list_models
from augserve.norms import norm_layers, use_statistics
from augserve.statistics import Statistics

TORCH = "batch-torch"  # the norm "batch" with torch.nn.BatchNorm2d for its layers
NORMS: dict[str, dict[str, Any]] = {TORCH: {}, "batch": {}, "aug": {"phi": 1.5}, "robust": {}}
TRAIN, TRACKED, BATCH, GROUPS = WORK = ("train", "tracked", "batch", "groups")
ROWS_OF_GROUP = 16
IMAGE = (3, 32, 32)
CLASSES = 10


@dataclass(frozen=True)
class NetworkRow:
    """One network at one kind of work.

    Args:
        norm: of `NORMS`.
        work: "train": forward, loss, backward and a step of SGD. Inference by mode: "tracked"; "batch", all rows
            together; "groups", mode batch in statistics groups of `ROWS_OF_GROUP` rows.
        ms: median time.
        images_per_second: the batch over that time.
        ratio: of the time, within a round: of training to that with torch's BatchNorm2d, of inference to that of
            the same network in mode tracked.
    """

    norm: str
    work: str
    ms: float
    images_per_second: float
    ratio: float


def measure_networks(
    device: str = "cpu", *, model: str = "resnet20", batch: int = 128, rounds: int = 5, seed: int = 0
) -> list[NetworkRow]:
    """Measure a training step and inference with each norm.

    Args:
        device: "cpu" or "cuda".
        model: one of `augserve.models.list_models`.
        batch: images (3, 32, 32) in a batch.
        rounds: how often every contestant takes its turn, after one round that is not counted.
        seed: of the weights and the data.

    Returns:
        The rows: training with every norm, then inference norm by norm.

    Raises:
        ConfigurationError: an unknown model, an unknown or missing device, an impossible batch or number of rounds.

    Example:
        >>> [row.work for row in measure_networks(batch=2, rounds=1) if row.norm == "aug"]
        ['train', 'tracked', 'batch', 'groups']
    """
    if device not in ("cpu", "cuda"):
        raise unknown_choice("device", device, ("cpu", "cuda"))
    if model not in list_models():
        raise unknown_choice("model", model, list_models())
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device cuda: there is no CUDA device; use cpu")
    if batch < 2 or rounds < 1:
        raise ConfigurationError(f"expected batch >= 2 and rounds >= 1; got {batch} and {rounds}")
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn((batch, *IMAGE), generator=generator).to(device)
    labels = torch.randint(CLASSES, (batch,), generator=generator).to(device)
    tasks = _tasks(model, seed, images, labels)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in tasks}
    for turn in range(rounds + 1):
        for key, task in tasks.items():
            taken = task()
            if turn:
                seconds[key].append(taken)
    return [_row(key, seconds, batch) for key in tasks]


def networks(model: str, seed: int, images: Tensor) -> dict[str, nn.Module]:
    """Return a network for each of `NORMS`, with the same weights and running statistics that have seen the images.

    They are in training mode, on the device of the images.
    """
    made: dict[str, nn.Module] = {}
    weights: dict[str, Tensor] = {}
    for norm, options in NORMS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_model(model, CLASSES, IMAGE[0], "batch" if norm == TORCH else norm, options)
        if norm == TORCH:
            _take_torchs_layers(network)
        weights = weights or dict(network.named_parameters())
        network.load_state_dict(weights, strict=False)  # the parameters have the same names in all of them
        network.to(images.device).train()
        with torch.no_grad():
            network(images)
        made[norm] = network
    return made


def _take_torchs_layers(network: nn.Module) -> None:
    for name, layer in norm_layers(network).items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.BatchNorm2d(layer.num_features))


def _tasks(model: str, seed: int, images: Tensor, labels: Tensor) -> dict[tuple[str, str], Callable[[], float]]:
    """Return what is measured, by norm and work, as functions that return seconds; each has weights of its own."""
    made = networks(model, seed, images)
    group = torch.arange(images.shape[0], device=images.device) // ROWS_OF_GROUP
    modes: dict[str, tuple[Statistics, Tensor | None]] = {
        TRACKED: (Statistics("tracked"), None),
        BATCH: (Statistics("batch"), None),
        GROUPS: (Statistics("batch"), group),
    }
    tasks = {(norm, TRAIN): _training(copy.deepcopy(network), images, labels) for norm, network in made.items()}
    for norm, network in made.items():
        for work, mode in modes.items():
            if norm != TORCH:
                tasks[norm, work] = _inference(network, images, mode)
            elif work == TRACKED:  # torch's layers know no other mode
                tasks[norm, work] = _inference(network, images, None)
    return tasks


def _training(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], float]:
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    before = copy.deepcopy(network.state_dict())

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def run() -> float:
        network.load_state_dict(before)  # the same work every time: passes of a solver depend on the data
        return _seconds(step, images)

    return run


def _inference(
    network: nn.Module, images: Tensor, mode: tuple[Statistics, Tensor | None] | None
) -> Callable[[], float]:
    network.eval()

    @torch.no_grad()
    def run() -> float:
        with contextlib.nullcontext() if mode is None else use_statistics(network, *mode):
            return _seconds(lambda: network(images), images)

    return run


def _seconds(work: Callable[[], object], images: Tensor) -> float:
    wait: Callable[[], None] = torch.cuda.synchronize if images.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def _row(key: tuple[str, str], seconds: dict[tuple[str, str], list[float]], batch: int) -> NetworkRow:
    norm, work = key
    ours = seconds[key]
    theirs = seconds[(TORCH, TRAIN) if work == TRAIN else (norm, TRACKED)]
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    median = statistics.median(ours)
    return NetworkRow(norm, work, 1e3 * median, batch / median, ratio)
