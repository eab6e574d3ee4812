"""A job in the service: its own run, and beside it the one of tracked statistics where it asks for a comparison."""

from __future__ import annotations

import asyncio
import gc
import warnings
from pathlib import Path

import numpy as np
import pytest

from augserve.errors import StatisticsError
from augserve.service import Predictor, PredictSettings, read_settings
from augserve.service.lifecycle import Outcome, Service
from augserve.service.queue.deadlines import Deadline
from tests.service.held import LONG
from tests.service.tiny import expected_logits, some_rows, write_model

TOLERANCE = 1e-5  # float32 sums of 64 values of order 1


def executed(path: Path, rows: np.ndarray, asked: PredictSettings, **settings: object) -> Outcome:
    """The outcome of one job in a service around a file."""

    async def go() -> Outcome:
        service = Service(read_settings(model=path, threads=1, **settings))
        service.load()
        try:
            predictor = service.models.get()
            return await service.execute(predictor, predictor.prepare(rows, asked), Deadline(LONG), "a")
        finally:
            await service.stop()

    return asyncio.run(go())


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("limit", [4, 256])
def test_a_comparison_answers_with_both_statistics(model: Path, fold: bool, limit: int) -> None:
    rows = some_rows(10)
    asked = PredictSettings(tracking=False, batch_size=4, compare=True)
    outcome = executed(model, rows, asked, max_batch_size=limit, fold_tracked=fold)
    groups = [list(range(4)), list(range(4, 8)), [8, 9]]
    np.testing.assert_allclose(outcome.logits, expected_logits(rows, groups, [0] * 3), atol=TOLERANCE)
    assert outcome.tracked is not None
    np.testing.assert_allclose(outcome.tracked, expected_logits(rows, groups, [1] * 3), atol=TOLERANCE)
    assert (outcome.logits != outcome.tracked).any()


def test_a_comparison_of_tracked_statistics_runs_once(model: Path) -> None:
    rows = some_rows(5)
    outcome = executed(model, rows, PredictSettings(tracking=True, compare=True))
    np.testing.assert_allclose(outcome.logits, expected_logits(rows, [list(range(5))], [1]), atol=TOLERANCE)
    assert outcome.tracked is outcome.logits


def test_without_a_comparison_there_is_no_tracked_answer(model: Path) -> None:
    assert executed(model, some_rows(2), PredictSettings(tracking=False)).tracked is None


def test_a_comparison_that_the_file_cannot_give_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "batch.onnx", "batch", default_mode="batch")

    def refused() -> None:
        with pytest.raises(StatisticsError, match="serves batch statistics only; got a request for tracked"):
            executed(path, some_rows(4), PredictSettings(compare=True))

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        refused()
        gc.collect()
    assert [str(one.message) for one in seen] == []  # no coroutine was left that nobody awaits


@pytest.mark.parametrize("mode", ["adaptive", "batch", "tracked"])
def test_a_split_request_of_a_model_equals_the_whole(tmp_path: Path, mode: str) -> None:
    path = write_model(tmp_path / "m.onnx", mode, default_mode="tracked" if mode == "adaptive" else mode)
    rows = some_rows(11)
    asked = PredictSettings(batch_size=2)
    outcome = executed(path, rows, asked, max_batch_size=3)
    alone = Predictor.open(path, threads=1)
    np.testing.assert_allclose(outcome.logits, alone.run(alone.prepare(rows, asked)), atol=TOLERANCE)
