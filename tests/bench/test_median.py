"""The measured bar of the median: the table it covers, and that wrong answers miss it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from augserve.bench import median as bench
from augserve.bench.median import CASES, PHIS, PRECISIONS, SIZES, MedianRow, draw, median_accuracy, summarize
from augserve.errors import ConfigurationError
from augserve.norms.median import MedianResult, generalized_median
from augserve.norms.median.operator import SOLVER
from tests import oracles
from tests.norms import test_median as norm_tests
from tests.tolerances import MEDIAN

SMALL = (1, 2, 4, 32, 512)
Change = Callable[[MedianResult], MedianResult]


def rows_with(
    change: Change, monkeypatch: pytest.MonkeyPatch, dtype: str = "float64", m: int = 32
) -> list[MedianRow]:
    """Measure a median whose results went through `change`."""
    monkeypatch.setattr(
        bench, "generalized_median", lambda *given, **options: change(generalized_median(*given, **options))
    )
    return list(median_accuracy(dtype, cases=["normal", "zeros"], phis=[1, 1.5, math.inf], sizes=[m]))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_small_sets_meet_the_bar(dtype: str) -> None:
    rows = list(median_accuracy(dtype, sizes=SMALL))
    assert [row for row in rows if not row.ok] == []
    assert {(row.case, row.m, row.phi) for row in rows} == {(c, m, p) for c in CASES for m in SMALL for p in PHIS}
    summary = summarize(rows)
    assert summary.missed == ()
    assert 0 < summary.worst.error <= PRECISIONS[dtype].bar
    assert 10 <= summary.most_passes <= bench.MAX_PASSES


def test_large_sets_meet_the_bar() -> None:
    rows = list(median_accuracy(cases=["relu", "outlier"], phis=[1.1, 1.5], sizes=[16384, 131072]))
    assert [row for row in rows if not row.ok] == []


def test_bars_are_those_of_the_tests_and_the_layers() -> None:
    assert (tuple(CASES), PHIS, SIZES) == (norm_tests.CASES, norm_tests.PHIS, norm_tests.SIZES)
    for name, asked in PRECISIONS.items():
        assert asked.bar == MEDIAN[getattr(torch, name)]
    assert PRECISIONS["float32"].rtol == SOLVER[torch.float32][0]


def test_small_sets_in_float32_have_no_bar_for_the_error() -> None:
    bars = {row.m: row.bar for row in median_accuracy("float32", cases=["normal"], phis=[1.5], sizes=SMALL)}
    assert bars == {1: math.inf, 2: math.inf, 4: math.inf, 32: 2e-4, 512: 2e-4}


@pytest.mark.parametrize("phi", [1.1, 3.0])
def test_an_error_is_in_deviations_of_the_data(monkeypatch: pytest.MonkeyPatch, phi: float) -> None:
    monkeypatch.setattr(bench, "draw", lambda *given: 50 * draw(*given))
    (good,) = median_accuracy(cases=["student"], phis=[phi], sizes=[32])
    x = 50 * draw("student", 12, 32)
    found = generalized_median(x, phi, dim=1).value.tolist()
    errors = [
        abs(value - oracles.generalized_median(row.numpy(), phi)) / row.numpy().std()
        for value, row in zip(found, x, strict=True)
    ]
    assert good.error == pytest.approx(max(errors), abs=1e-12)


def shift(by: float) -> Change:
    return lambda result: result._replace(value=result.value + by * torch.eye(len(result.value))[-1])


@pytest.mark.parametrize(("dtype", "by"), [("float64", 1e-5), ("float32", 1e-3), ("float64", math.nan)])
def test_a_wrong_value_in_one_draw_misses(monkeypatch: pytest.MonkeyPatch, dtype: str, by: float) -> None:
    rows = rows_with(shift(by), monkeypatch, dtype)
    assert not any(row.ok for row in rows)
    summary = summarize(rows)
    assert summary.missed == tuple(rows)
    assert not summary.worst.error <= PRECISIONS[dtype].bar


def test_nan_misses_also_where_no_bar_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_with(shift(math.nan), monkeypatch, "float32", m=4)
    assert all(row.bar == math.inf and math.isnan(row.error) and not row.ok for row in rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result._replace(lower=result.upper + 1e-4, upper=result.upper + 2e-4),
        lambda result: result._replace(lower=result.lower - 2e-4, upper=result.lower - 1e-4),
        lambda result: result._replace(lower=result.lower - 1),
        lambda result: result._replace(lower=result.lower * math.nan),
        lambda result: result._replace(status=torch.ones_like(result.status)),
    ],
    ids=["above", "below", "wide", "nan", "status"],
)
def test_a_bracket_that_proves_nothing_misses(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    rows = rows_with(change, monkeypatch)
    assert not any(row.certified or row.ok for row in rows)
    assert all(row.error <= row.bar and row.inside for row in rows)


def test_a_value_outside_the_data_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bench, "generalized_median", lambda *given, **options: shift(1e-9)(generalized_median(*given, **options))
    )
    (row,) = median_accuracy("float32", cases=["constant"], phis=[1.5], sizes=[1])
    assert row.inside  # too little to leave the float32 value
    (row,) = median_accuracy("float64", cases=["constant"], phis=[1.5], sizes=[1])
    assert not row.inside
    assert not row.ok


def test_too_few_passes_miss_and_too_many_too() -> None:
    (few,) = median_accuracy(cases=["relu"], phis=[1.1], sizes=[512], max_steps=3)
    assert (few.passes, few.certified, few.ok) == (3, False, False)
    (row,) = median_accuracy(cases=["relu"], phis=[1.1], sizes=[512])
    assert row.ok
    assert not dataclasses.replace(row, passes=33).ok


def test_draws_depend_on_the_seed_only() -> None:
    alone = list(median_accuracy(cases=["zeros"], phis=[1.5], sizes=[32]))
    among = [row for row in median_accuracy(phis=[3, 1.5], sizes=[4, 32]) if (row.phi, row.m) == (1.5, 32)]
    assert alone == [row for row in among if row.case == "zeros"]
    assert alone != list(median_accuracy(cases=["zeros"], phis=[1.5], sizes=[32], seed=1))


@pytest.mark.parametrize(
    ("dtype", "options", "words"),
    [
        ("float16", {}, "unknown dtype 'float16'; choose one of: float32, float64"),
        ("float64", {"cases": ["cauchy"]}, "unknown case 'cauchy'"),
        ("float64", {"phis": [0.5]}, "phi must lie in"),
        ("float64", {"sizes": [0]}, "sizes of 1 or more"),
        ("float64", {"seed": -1}, "a seed in"),
        ("float64", {"seed": 2**63}, "a seed in"),
    ],
)
def test_wrong_arguments_are_refused_before_any_row(dtype: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        median_accuracy(dtype, **options)
