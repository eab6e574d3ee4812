"""Fixtures of the data tests: the real data, and small sets in every official format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.formats import CifarParts
from tests.shared import shared_folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return shared_folder("data")


@pytest.fixture(scope="session")
def cifar_parts() -> CifarParts:
    """Six random batches of 20 images, two of each class."""
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (6, 20, 3, 32, 32), dtype=np.uint8)
    labels = np.stack([rng.permutation(20) % 10 for _ in range(6)])
    return CifarParts(images, labels)


@pytest.fixture(scope="session")
def fashion_parts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A train part of 60 random images and a test part of 20, with labels."""
    rng = np.random.default_rng(8)
    return {
        part: (rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.permutation(n) % 10)
        for part, n in (("train", 60), ("t10k", 20))
    }
