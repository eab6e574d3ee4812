"""How many rows fill a run, with forms whose runs take the time that they are told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from augserve.service import Predictor
from augserve.service.lifecycle import Service
from augserve.service.model.graph import Form
from augserve.service.model.run_size import LEAST, fitting_rows
from augserve.service.settings import Settings

MANIFEST = cast("Any", SimpleNamespace(shape=[1, 2, 2]))


class Timed(Form):
    """A form on a clock of its own: a run of n rows takes seconds(n)."""

    def __init__(self, seconds: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.now, self.sizes = seconds, 0.0, list[int]()
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def seconds_of(self, rows: int) -> float:
        return self.seconds(rows)

    def run(self, rows: np.ndarray, *_: object, alone: bool = True) -> np.ndarray:
        assert not alone
        self.sizes.append(len(rows))
        self.now += self.seconds(len(rows))
        return np.zeros((len(rows), 2), np.float32)


@pytest.mark.parametrize(
    ("seconds", "limit", "expected"),
    [
        (lambda n: 4e-4 * n, 64, LEAST),  # a row costs the same in any run
        (lambda n: 4e-4 * n * (1.2 if n > 16 else 1), 64, LEAST),
        (lambda n: 1e-3 + 1e-4 * n, 64, 64),  # weights that are read in every run
        (lambda n: 1e-4 + 1e-4 * n, 64, 32),  # another 2% are gained up to 32 rows
        (lambda n: 1e-3 + 1e-4 * n, 20, 16),
        (lambda n: 1e-3 + 1e-4 * n, 3, 3),
    ],
)
def test_the_fewest_rows_of_which_more_gain_little(
    seconds: Callable[[int], float], limit: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fitting_rows(Timed(seconds, monkeypatch), MANIFEST, limit) == expected


@pytest.mark.parametrize("second", [0.003, math.inf])
def test_what_runs_long_is_not_measured(second: float, monkeypatch: pytest.MonkeyPatch) -> None:
    form = Timed(lambda n: second * n, monkeypatch)
    assert fitting_rows(form, MANIFEST, 64) == 64
    assert form.sizes == []


def test_measuring_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    form = Timed(lambda n: 0.002 * n, monkeypatch)
    fitting_rows(form, MANIFEST, 64)
    assert form.now < 0.5
    assert form.sizes


@pytest.mark.parametrize("given", [{}, {"preferred_batch_size": 32}])
def test_only_where_no_size_is_given(given: dict[str, int], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("augserve.service.settings.usable_cores", lambda: [0, 1])
    service = Service(Settings(model=model, **given))
    service.load()
    predictor: Predictor = service.models.get(None)
    assert (predictor.adaptive.fill is None) == bool(given)
    service.scheduler.close()
