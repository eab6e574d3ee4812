"""The vocabulary of statistics: which combinations there are, the blend's law, and cutting rows into groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augserve.errors import ConfigurationError, StatisticsError
from augserve.statistics import MODES, REMAINDERS, Statistics, split_rows

ROWS = st.integers(1, 300)
SIZES = st.integers(1, 40)


def test_modes_without_a_blend_have_fixed_weights() -> None:
    assert MODES == ("tracked", "batch", "blend")
    assert Statistics() == Statistics("tracked")
    assert [Statistics("tracked").weight(n) for n in (1, 7)] == [1.0, 1.0]
    assert [Statistics("batch").weight(n) for n in (1, 7)] == [0.0, 0.0]


@given(st.floats(0, 1), ROWS)
def test_a_given_weight_does_not_depend_on_the_group(weight: float, rows: int) -> None:
    assert Statistics("blend", tracked_weight=weight).weight(rows) == weight


@given(st.floats(0, 1e6), ROWS)
def test_prior_counts_as_that_many_rows(prior: float, rows: int) -> None:
    weight = Statistics("blend", prior=prior).weight(rows)
    assert 0 <= weight < 1
    assert weight * (prior + rows) == pytest.approx(prior, rel=1e-12)


def test_prior_lies_between_the_two_other_modes() -> None:
    weights = [Statistics("blend", prior=16).weight(n) for n in (1, 16, 48)]
    assert weights == [16 / 17, 0.5, 0.25]
    assert Statistics("blend", prior=0).weight(5) == Statistics("batch").weight(5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "Batch"}, "unknown statistics mode 'Batch'; choose one of: batch, blend, tracked"),
        ({"mode": None}, "unknown statistics mode None"),
        ({"mode": "tracked", "tracked_weight": 1.0}, "'tracked' takes no tracked_weight"),
        ({"mode": "batch", "tracked_weight": 0.0}, "'batch' takes no tracked_weight"),
        ({"mode": "tracked", "prior": 4}, "'tracked' takes no prior"),
        ({"mode": "batch", "prior": 0}, "'batch' takes no prior"),
        ({"mode": "blend"}, "one of tracked_weight and prior; got neither"),
        ({"mode": "blend", "tracked_weight": 0.5, "prior": 4}, "one of tracked_weight and prior; got both"),
        ({"mode": "blend", "tracked_weight": -0.01}, r"tracked_weight must lie in \[0, 1\]; got -0.01"),
        ({"mode": "blend", "tracked_weight": 1.01}, r"tracked_weight must lie in \[0, 1\]; got 1.01"),
        ({"mode": "blend", "tracked_weight": math.nan}, r"tracked_weight must lie in \[0, 1\]; got nan"),
        ({"mode": "blend", "prior": -1}, "finite number of rows >= 0; got -1"),
        ({"mode": "blend", "prior": math.inf}, "finite number of rows >= 0; got inf"),
        ({"mode": "blend", "prior": math.nan}, "finite number of rows >= 0; got nan"),
    ],
)
def test_impossible_statistics_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Statistics(**arguments)


def test_statistics_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Statistics().mode = "batch"


@given(ROWS, SIZES, st.sampled_from(REMAINDERS))
def test_groups_keep_order_and_take_every_row_that_is_not_dropped(n: int, size: int, remainder: str) -> None:
    full, left = divmod(n, size)
    if (remainder == "error" and left) or (remainder == "drop" and not full):
        with pytest.raises(StatisticsError):
            split_rows(n, size, remainder)
        return
    ids, sizes = split_rows(n, size, remainder)
    assert sum(sizes) == len(ids) == (full * size if remainder == "drop" else n)
    assert ids.dtype == np.int64
    assert ids.tolist() == [k for k, count in enumerate(sizes) for _ in range(count)]
    assert set(sizes[:-1]) <= {size}
    if remainder == "merge" and full:
        assert size <= sizes[-1] < 2 * size
        assert len(sizes) == full
    else:
        assert 1 <= sizes[-1] <= size
        assert len(sizes) == full + (left > 0 and remainder != "drop")


@given(ROWS, st.sampled_from(REMAINDERS))
def test_without_a_batch_size_all_rows_are_one_group(n: int, remainder: str) -> None:
    ids, sizes = split_rows(n, remainder=remainder)
    assert sizes == [n]
    assert ids.tolist() == [0] * n


@pytest.mark.parametrize(
    ("remainder", "ten_by_four", "three_by_four"),
    [("own", [4, 4, 2], [3]), ("merge", [4, 6], [3]), ("drop", [4, 4], None), ("error", None, None)],
)
def test_each_remainder(remainder: str, ten_by_four: list[int] | None, three_by_four: list[int] | None) -> None:
    assert split_rows(8, 4, remainder).sizes == [4, 4]
    for n, sizes in ((10, ten_by_four), (3, three_by_four)):
        if sizes is not None:
            assert split_rows(n, 4, remainder).sizes == sizes
        else:
            with pytest.raises(StatisticsError, match=str(n)):
                split_rows(n, 4, remainder)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((8, 4, "keep"), ConfigurationError, "unknown remainder 'keep'; choose one of: drop, error, merge, own"),
        ((8, 0), ConfigurationError, "batch_size must be at least 1; got 0"),
        ((8, -3), ConfigurationError, "batch_size must be at least 1; got -3"),
        ((0,), StatisticsError, "at least 1 row; got 0"),
        ((-1, 4), StatisticsError, "at least 1 row; got -1"),
        ((10, 4, "error"), StatisticsError, "10 rows do not divide into groups of 4: 2 left over"),
        ((3, 4, "drop"), StatisticsError, "leaves none of the 3 rows with batch_size 4"),
    ],
)
def test_impossible_groups_are_refused(arguments: tuple[object, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        split_rows(*arguments)
