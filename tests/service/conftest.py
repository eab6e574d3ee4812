from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from augserve.service import Predictor
from tests.service.tiny import running, write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.onnx")


@pytest.fixture(scope="session")
def flat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a layer of one value a row (L = 1), whose default is the group's own statistics."""
    norms = [{"name": "norm", "kind": "batch", "num_features": 3, "positions": 1}]
    path = tmp_path_factory.mktemp("models") / "flat.onnx"
    return write_model(path, norms=norms, default_mode="batch")


@pytest.fixture(scope="session")
def server(model: Path) -> Iterator[httpx.Client]:
    with running(model, max_body_bytes=200_000, max_rows=64, max_image_pixels=10_000) as client:
        yield client


@pytest.fixture(scope="session")
def predictor(model: Path) -> Predictor:
    return Predictor.open(model, threads=1)
