"""Up to how many rows a run alone takes one core, with forms whose runs take the time that they are told."""

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
from augserve.service.model.graph import Form
from augserve.service.model.lone_runs import SIZES, rows_on_one_core
from tests.service.tiny import some_rows

MANIFEST = cast("Any", SimpleNamespace(shape=[1, 2, 2]))
Seconds = Callable[[int], float]


class Timed(Form):
    """A form on a clock of its own: a run of n rows takes one(n) seconds on one core, both(n) on two."""

    def __init__(self, one: Seconds, both: Seconds, monkeypatch: pytest.MonkeyPatch, late: int = 0) -> None:
        self.one, self.both, self.late, self.now, self.sizes = one, both, late, 0.0, list[int]()
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def seconds_of(self, rows: int) -> float:
        return self.both(rows)

    def run(self, rows: np.ndarray, *_: object, alone: bool = True) -> np.ndarray:
        self.sizes.append(len(rows))
        self.now += (self.both if alone else self.one)(len(rows))
        if alone and self.late and len(self.sizes) % self.late == 0:
            self.now += 0.004  # the second core comes late
        return np.zeros((len(rows), 2), np.float32)


@pytest.mark.parametrize(
    ("one", "both", "expected"),
    [
        (lambda n: 4e-4 * n, lambda n: 3e-4 * n, 2),
        (lambda n: 4e-4 * n, lambda n: 4e-4 * n, SIZES[-1]),  # a second core that brings nothing
        (lambda n: 4e-4 * n, lambda n: 2.1e-4 * n, 1),
        (lambda n: 4e-4 * n, lambda n: 1.9e-4 * n, 0),
    ],
)
def test_as_many_rows_as_lose_little(
    one: Seconds, both: Seconds, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = Timed(one, both, monkeypatch, late=3)
    assert rows_on_one_core(form, MANIFEST) == expected
    assert max(form.sizes) <= 2 * max(expected, 0.5)


@pytest.mark.parametrize("second", [0.02, math.inf])
def test_what_runs_long_is_not_measured(second: float, monkeypatch: pytest.MonkeyPatch) -> None:
    form = Timed(lambda n: second * n, lambda n: second * n, monkeypatch)
    assert rows_on_one_core(form, MANIFEST) == 0
    assert form.sizes == []


def test_a_few_rows_alone_take_the_session_of_one_core(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("augserve.service.model.predictor.rows_on_one_core", lambda form, manifest: form.few + 2)
    predictor = Predictor.open(model, threads=2, threads_beside=1)
    for _ in range(2):  # the second measures on all cores, as the first
        predictor.fit_runs(None)
    form = predictor.adaptive
    took: list[object] = []
    run = form._run
    monkeypatch.setattr(form, "_run", lambda session, feed: took.append(session) or run(session, feed))
    for n in (1, 2, 3):
        form.run(some_rows(n), np.zeros(n, np.int64), np.zeros(n, np.float32))
        assert form.seconds_of(n) < math.inf
    form.run(some_rows(3), np.zeros(3, np.int64), np.zeros(3, np.float32), alone=False)
    assert took == [form.beside, form.beside, form.session, form.beside]
    assert form.fill is None
