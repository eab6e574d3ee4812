"""A small set of random images in place of a data set, and one run that was trained on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from augserve.data import ImageSet
from augserve.training import Run, TrainConfig, load_run, train

Trainer = Callable[..., Path]


@pytest.fixture(scope="session")
def images() -> ImageSet:
    """48 + 16 + 20 images (3, 16, 16) of three classes that a network can tell apart by their brightness."""
    rng = np.random.default_rng(5)
    parts = {}
    for part, n in (("train", 48), ("val", 16), ("test", 20)):
        labels = rng.permutation(n) % 3
        pixels = rng.integers(0, 60, (n, 3, 16, 16)) + 90 * labels[:, None, None, None]
        parts |= {f"{part}_images": pixels.astype(np.uint8), f"{part}_labels": labels.astype(np.int64)}
    return ImageSet(
        name="small",
        **parts,
        classes=("dark", "grey", "bright"),
        mean=(0.4, 0.45, 0.5),
        std=(0.3, 0.25, 0.2),
        flip=True,
        crop_padding=2,
    )


@pytest.fixture(scope="session")
def trainer(images: ImageSet) -> Trainer:
    """Train on the small images into a folder: trainer(folder, **settings)."""

    def run(folder: Path, *, overwrite: bool = False, data: ImageSet = images, **settings: object) -> Path:
        config = TrainConfig(**{"norm": "batch", "epochs": 1, "batch_size": 16, "device": "cpu", **settings})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("augserve.training.loop.load_dataset", lambda name, folder=None: data)
            return train(config, folder, overwrite=overwrite).folder

    return run


@pytest.fixture(scope="session")
def trained(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two epochs; its files are not to be changed."""
    return load_run(trainer(tmp_path_factory.mktemp("runs") / "trained", epochs=2, phi=1.25, norm="aug"))
