"""The soak of `make soak`, for a few seconds on the tiny network: what must hold at any length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import uvloop

from benchmarks.soak import Plan, Result, soak
from benchmarks.soak_server import Weight, growths
from benchmarks.soak_traffic import make_cases
from tests.service import tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks of other weights."""
    folder = tmp_path_factory.mktemp("soak")
    first = tiny.write_model(folder / "a.onnx")
    with pytest.MonkeyPatch.context() as patch:
        for weights in ("W", "V"):
            patch.setattr(tiny, weights, 3 * getattr(tiny, weights))
        return [first, tiny.write_model(folder / "b.onnx")]


@pytest.fixture(scope="module")
def result(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Result:
    plan = Plan(seconds=6, saturate=0.5, reload_every=1, restart_every=2, pause=0.1, slowly=0.5, fuzz=500)
    return uvloop.run(soak(files, tmp_path_factory.mktemp("server"), plan))


def test_nothing_is_lost_wrong_or_a_failure(result: Result) -> None:
    assert result.violations == [], "\n".join(result.lines)
    assert 500 not in result.statuses
    assert result.statuses[200] > 0


def test_it_was_reloaded_and_restarted(result: Result) -> None:
    assert result.restarts == 1
    assert result.changes >= 2  # a restart alone is one


def test_every_stranger_came(result: Result) -> None:
    told = "\n".join(result.lines)
    for who in (
        "too large, in chunks", "too large, as announced: 413", "upload aborted: done",
        "left before the answer: done",
        "slow sender: 200", "slow reader: 200", "cut off JSON: 400", "wrong type: 415", "wrong shape: 422",
    ):  # fmt: skip
        assert f"stranger       {who}" in told, told


def test_an_answer_of_other_rows_matches_no_file(files: list[Path]) -> None:
    cases = make_cases(files, "tiny")
    for case in cases:
        rows = case.rows[::-1] if len(case.rows) > 1 else case.rows + 0.1
        mean = rows.mean(axis=(2, 3))
        center = case.weight * tiny.TRACKED + (1 - case.weight) * mean.mean(axis=0)
        right = case.rows.mean(axis=(2, 3))
        own = case.weight * tiny.TRACKED + (1 - case.weight) * right.mean(axis=0)
        assert case.match((right - own) @ tiny.W + right @ tiny.V) == 0, case.name
        assert case.match(3 * ((right - own) @ tiny.W + right @ tiny.V)) == 1, case.name
        assert case.match((mean - center) @ tiny.W + mean @ tiny.V) == -1, case.name


def test_growth_is_the_slope_of_each_life_after_its_warm_up() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(0, 50, 200) + random.exponential(2e4, 200) * (random.random(200) < 0.5)  # requests
    flat = [Weight(0, 2.0 * k, round(90_000 + noise[k] + (5e4 if k < 30 else 0))) for k in range(200)]
    grows = [Weight(1, 2.0 * k, round(90_000 + noise[k] + 300 * 2 * k / 60)) for k in range(200)]
    first, second = growths([*flat, *grows, Weight(2, 70.0, 1)], warm_up_s=60)
    assert abs(first.kib_per_min) < 4 * first.error < 30
    assert abs(second.kib_per_min - 300) < 4 * second.error < 30


def test_a_last_span_that_is_cut_short_does_not_count() -> None:
    level = [Weight(0, 5.0 * k, 90_000 + (50_000 if k % 6 else 0)) for k in range(60)]  # low once in 30 s
    (whole,) = growths(level, warm_up_s=0)
    (cut,) = growths([*level, Weight(0, 301.0, 140_000)], warm_up_s=0)
    assert whole.kib_per_min == cut.kib_per_min == 0
