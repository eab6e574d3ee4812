"""Accuracy by mode, against a direct computation of what each mode means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from augserve.data import ImageSet
from augserve.models import build_model
from augserve.norms import BatchNorm2d, norm_layers
from augserve.training import Run
from augserve.training.batches import Normalize
from augserve.training.evaluate import ORDER_SEED, accuracy_by_mode, default_mode

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """Logits that turn on the sign of the normalized brightness: they depend on whose statistics are used."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = BatchNorm2d(3)
        self.norm.running_mean.fill_(-0.2)
        self.norm.running_var.fill_(2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.norm(x).mean(dim=(1, 2, 3))
        return torch.stack([-z, 0.5 - z.abs(), z], dim=1)


def direct(images: ImageSet, batch_size: int, mode: str) -> float:
    """The same in float64 NumPy, with the groups that the docstring describes."""
    mean, std = (np.array(v)[:, None, None] for v in (images.mean, images.std))
    rows = (images.test_images / 255 - mean) / std
    n = len(rows)
    order = np.random.default_rng(ORDER_SEED).permutation(n)
    full = max(1, n // batch_size)
    groups = [order[k * batch_size : (k + 1) * batch_size if k + 1 < full else n] for k in range(full)]
    right = 0
    for group in groups:
        x = rows[group]
        if mode == "batch":
            center, scale = x.mean(axis=(0, 2, 3), keepdims=True), x.var(axis=(0, 2, 3), keepdims=True)
        else:
            center, scale = -0.2, 2.0
        z = ((x - center) / np.sqrt(scale + 1e-5)).mean(axis=(1, 2, 3))
        logits = np.stack([-z, 0.5 - np.abs(z), z], axis=1)
        right += (logits.argmax(axis=1) == images.test_labels[group]).sum()
    return right / n


@pytest.mark.parametrize("batch_size", [3, 6, 8, 10, 20, 100])
def test_accuracy_is_that_of_a_direct_computation(images: ImageSet, batch_size: int) -> None:
    normalize = Normalize(images.mean, images.std)
    accuracy = accuracy_by_mode(Tiny(), images.test_images, images.test_labels, normalize, batch_size, CPU)
    assert accuracy == {mode: pytest.approx(direct(images, batch_size, mode)) for mode in ("tracked", "batch")}


def test_modes_and_group_sizes_matter_here(images: ImageSet) -> None:
    assert len({direct(images, size, mode) for size, mode in ((20, "tracked"), (20, "batch"), (3, "batch"))}) > 1


def test_evaluation_leaves_the_network_as_it_was_but_in_eval_mode(images: ImageSet) -> None:
    model = Tiny().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    normalize = Normalize(images.mean, images.std)
    accuracy_by_mode(model, images.test_images, images.test_labels, normalize, 8, CPU, modes=("batch",))
    assert not model.training
    assert model.norm.statistics.mode == "tracked"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_the_modes_asked_for_are_evaluated(images: ImageSet) -> None:
    normalize = Normalize(images.mean, images.std)
    accuracy = accuracy_by_mode(Tiny(), images.val_images, images.val_labels, normalize, 8, CPU, modes=("tracked",))
    assert list(accuracy) == ["tracked"]


@pytest.mark.parametrize(
    ("norm", "mode"),
    [
        ("batch", "tracked"),
        ("batch-untracked", "batch"),
        ("robust", "batch"),
        ("aug", "tracked"),
        ("none", "tracked"),
    ],
)
def test_default_mode_is_that_of_the_norm(norm: str, mode: str) -> None:
    model = build_model("resnet20", norm=norm)
    assert default_mode(model) == mode
    assert bool(norm_layers(model)) == (norm != "none")


def test_the_recorded_accuracy_is_that_of_the_saved_network(trained: Run, images: ImageSet) -> None:
    normalize = Normalize(trained.mean, trained.std)
    size = trained.config.batch_size
    test = accuracy_by_mode(trained.model, images.test_images, images.test_labels, normalize, size, CPU)
    assert trained.metrics["test_accuracy"] == test
    val = accuracy_by_mode(trained.model, images.val_images, images.val_labels, normalize, size, CPU)
    assert trained.metrics["val_accuracy"] == val["tracked"]
