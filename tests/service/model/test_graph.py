"""A form of a model on a device, and a device that is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from augserve.errors import ConfigurationError
from augserve.service import Predictor
from augserve.service.model.graph import Form
from augserve.service.settings import Settings
from tests.service.tiny import expected_logits, some_rows

CUDA = "CUDAExecutionProvider"


def test_bound_inputs_and_outputs_change_nothing(predictor: Predictor) -> None:
    form = Form(predictor.adaptive.session, "tiny")
    form._on_device = True  # what a form on a CUDA device does, on the CPU
    rows = some_rows(5)
    ids, weights = np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0.25, 0.25, 0.25], np.float32)
    expected = expected_logits(rows, [[0, 1], [2, 3, 4]], [0, 0.25])
    for given in (rows, rows[::-1][::-1]):
        np.testing.assert_allclose(form.run(given, ids, weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(CUDA not in ort.get_available_providers(), reason="an ONNX Runtime without CUDA")
def test_the_cpu_takes_over_only_where_it_may(model: Path) -> None:
    providers = (CUDA, "CPUExecutionProvider")
    try:
        came = Predictor.open(model, providers=providers, threads=1).adaptive.session.get_providers()[0]
    except ConfigurationError as error:
        assert "provider_fallback" in str(error)  # noqa: PT017 - either is right, as the machine has it
        came = Predictor.open(model, providers=providers, threads=1, fall_back=True)
        assert came.adaptive.session.get_providers()[0] == "CPUExecutionProvider"
    else:
        assert came == CUDA


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, [1]),
        ({"warmup_sizes": "1, 8,999"}, [1, 8, 256]),
        ({"warmup_sizes": ""}, []),
        ({"providers": CUDA, "max_batch_size": 8}, [1, 2, 4, 8]),
        ({"providers": CUDA, "max_batch_size": 6}, [1, 2, 4, 6]),
    ],
)
def test_sizes_to_warm_up(given: dict[str, object], sizes: list[int]) -> None:
    assert Settings(model="m.onnx", **given).warmup_rows() == sizes


def test_two_sessions_give_the_same_bits_or_there_is_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.open(model, threads=2, threads_beside=1)
    rows = np.random.default_rng(0).normal(size=(5, *predictor.manifest.shape)).astype(np.float32)
    ids, weights = np.asarray([0, 0, 1, 1, 2]), np.asarray([0, 0, 1, 1, 0.5], np.float32)
    for form in (predictor.adaptive, predictor.tracked):
        assert form.beside is not None
        assert form.beside is not form.session
        alone, beside = (form.run(rows, ids, weights, alone=alone) for alone in (True, False))
        assert alone.tobytes() == beside.tobytes()
    monkeypatch.setattr("augserve.service.model.self_check.same_bits", lambda *_: False)
    predictor = Predictor.open(model, threads=2, threads_beside=1)
    assert predictor.adaptive.beside is predictor.tracked.beside is None
