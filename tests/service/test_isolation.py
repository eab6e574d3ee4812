"""Groups of requests and runs: whole, in order, and under ids that no other request's rows have."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from augserve.errors import PayloadTooLargeError, StatisticsError
from augserve.service.isolation import Groups, Piece, cut, group_rows, merge
from augserve.statistics import Statistics

SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)

modes = st.one_of(
    st.sampled_from([Statistics("tracked"), Statistics("batch")]),
    st.floats(0, 1).map(lambda weight: Statistics("blend", tracked_weight=weight)),
    st.floats(0, 100).map(lambda prior: Statistics("blend", prior=prior)),
)
remainders = st.sampled_from(["own", "merge", "drop"])


def numbered(first: int, n: int) -> np.ndarray:
    """Rows that are told apart by their content: first, first + 1, .."""
    return np.arange(first, first + n, dtype=np.float32).reshape(n, 1, 1, 1)


@st.composite
def requests(draw: st.DrawFn, max_rows: int = 40) -> Groups:
    n = draw(st.integers(1, max_rows))
    size = draw(st.none() | st.integers(1, 12))
    remainder = draw(remainders)
    assume(not (remainder == "drop" and size is not None and size > n))
    return group_rows(n, draw(modes), size, remainder)


def groups_of(ids: np.ndarray, rows: np.ndarray) -> list[list[float]]:
    """The rows of each group, as an independent reader of the arrays finds them."""
    members: dict[int, list[float]] = {}
    for number, row in zip(ids.tolist(), rows.ravel().tolist(), strict=True):
        members.setdefault(number, []).append(row)
    return list(members.values())


@SETTINGS
@given(st.integers(1, 60), modes, st.none() | st.integers(1, 20), remainders)
def test_groups_are_consecutive_rows_with_the_weight_of_their_size(
    n: int, statistics: Statistics, size: int | None, remainder: str
) -> None:
    if remainder == "drop" and size is not None and size > n:
        with pytest.raises(StatisticsError, match="leaves none"):
            group_rows(n, statistics, size, "drop")
        return
    groups = group_rows(n, statistics, size, remainder)  # type: ignore[arg-type]
    left = n % size if size is not None else 0
    dropped = left if remainder == "drop" else 0
    assert groups.dropped == list(range(n - dropped, n))
    assert (groups.ids.dtype, groups.tracked_weight.dtype) == (np.int64, np.float32)
    assert sum(groups.sizes) == len(groups.ids) == len(groups.tracked_weight) == n - dropped
    at = 0
    for number, (length, weight) in enumerate(zip(groups.sizes, groups.weights, strict=True)):
        assert (groups.ids[at : at + length] == number).all()
        assert (groups.tracked_weight[at : at + length] == np.float32(weight)).all()
        assert weight == statistics.weight(length)
        at += length
    if size is not None and n >= size:
        expected = {"own": {left} - {0}, "merge": {size + left}, "drop": set()}[remainder]
        assert set(groups.sizes) - {size} == expected - {size}


@SETTINGS
@given(requests(), st.integers(1, 16), st.booleans())
def test_a_cut_keeps_groups_whole_rows_in_order_and_the_limit(groups: Groups, limit: int, apart: bool) -> None:
    rows = numbered(0, len(groups.ids))
    own = [size for size, weight in zip(groups.sizes, groups.weights, strict=True) if weight < 1]
    if max(own, default=0) > limit:
        with pytest.raises(PayloadTooLargeError, match=rf"at most {limit} rows \(max_batch_size\); got one of \d+"):
            cut(rows, groups, limit, apart=apart)
        return
    pieces = cut(rows, groups, limit, apart=apart)
    np.testing.assert_array_equal(np.concatenate([piece.rows for piece in pieces]), rows)
    np.testing.assert_array_equal(np.concatenate([p.tracked_weight for p in pieces]), groups.tracked_weight)
    whole = groups_of(groups.ids, rows)
    found = [group for piece in pieces for group in groups_of(piece.ids, piece.rows)]
    for group, weight in zip(whole, groups.weights, strict=True):
        if weight < 1:
            assert group in found
        else:
            assert sorted(row for part in found if part[0] in group for row in part) == group
    for piece in pieces:
        assert 1 <= len(piece.ids) <= limit
        assert piece.groups == [len(group) for group in groups_of(piece.ids, piece.rows)]
        assert sorted(set(piece.ids.tolist())) == list(range(len(piece.groups)))
        assert not apart or len(piece.groups) == 1
    if not apart and len(rows) <= limit:
        assert len(pieces) == 1


@SETTINGS
@given(requests(), st.integers(1, 16))
def test_a_cut_makes_no_more_pieces_than_it_must(groups: Groups, limit: int) -> None:
    """Two pieces side by side never fit into one run, so that a request is not run piecemeal for nothing."""
    assume(all(size <= limit or weight == 1 for size, weight in zip(groups.sizes, groups.weights, strict=True)))
    pieces = cut(numbered(0, len(groups.ids)), groups, limit)
    for left, right in pairwise(pieces):
        assert len(left.ids) + right.groups[0] > limit


@SETTINGS
@given(st.lists(requests(12), min_size=1, max_size=8), st.integers(12, 20))
def test_a_run_gives_every_group_an_id_of_its_own(mix: list[Groups], limit: int) -> None:
    pieces: list[Piece] = []
    first = 0
    for groups in mix:
        pieces += cut(numbered(first, len(groups.ids)), groups, limit)
        first += len(groups.ids)
    rows, ids, weights = merge(pieces)
    assert (rows.dtype, ids.dtype, weights.dtype) == (np.float32, np.int64, np.float32)
    np.testing.assert_array_equal(rows, numbered(0, first))
    np.testing.assert_array_equal(weights, np.concatenate([groups.tracked_weight for groups in mix]))
    assert groups_of(ids, rows) == [group for p in pieces for group in groups_of(p.ids, p.rows)]
    assert sorted(set(ids.tolist())) == list(range(sum(len(piece.groups) for piece in pieces)))
    assert 0 <= ids.min() <= ids.max() < len(rows)  # the domain of the graph's input
    for number in set(ids.tolist()):
        assert len(set(weights[ids == number].tolist())) == 1  # one lambda a group


def test_one_piece_is_handed_on_without_a_copy() -> None:
    groups = group_rows(4, Statistics("batch"), 2)
    rows = numbered(0, 4)
    (piece,) = cut(rows, groups, 4)
    assert piece.rows is rows
    assert merge([piece])[0] is rows


def test_tracked_rows_of_one_group_may_part_and_no_others() -> None:
    rows = numbered(0, 10)
    parts = cut(rows, group_rows(10, Statistics("tracked")), 4)
    assert [piece.groups for piece in parts] == [[4], [4], [2]]
    assert [piece.ids.tolist() for piece in parts] == [[0] * 4, [0] * 4, [0] * 2]
    for statistics in (Statistics("batch"), Statistics("blend", tracked_weight=0.99)):
        with pytest.raises(PayloadTooLargeError, match="choose a smaller batch_size, or tracking"):
            cut(rows, group_rows(10, statistics), 4)


def test_groups_of_a_file_without_groups_run_one_by_one() -> None:
    rows = numbered(0, 5)
    parts = cut(rows, group_rows(5, Statistics("batch"), 2), 100, apart=True)
    assert [piece.rows.ravel().tolist() for piece in parts] == [[0, 1], [2, 3], [4]]
    assert [piece.ids.tolist() for piece in parts] == [[0, 0], [0, 0], [0]]


def test_a_row_without_statistics_of_its_own_is_refused_or_warned_of() -> None:
    for statistics in (Statistics("batch"), Statistics("blend", prior=3)):
        assert len(group_rows(5, statistics, 2).warnings) == 1
        with pytest.raises(StatisticsError, match="at least 2 rows in each statistics group; group 2 has 1"):
            group_rows(5, statistics, 2, min_rows=2)
    for fine in (Statistics("tracked"), Statistics("blend", tracked_weight=1)):
        assert group_rows(5, fine, 2, min_rows=2).warnings == []


@pytest.mark.parametrize(
    ("sizes", "tracked", "expected"),
    [
        ([8, 8, 8, 8], False, [16, 16]),
        ([40, 8], False, [40, 8]),
        ([8, 40, 8], False, [8, 40, 8]),
        ([40], True, [16, 16, 8]),
        ([10, 10], True, [10, 10]),
    ],
)
def test_a_run_is_filled_and_a_larger_group_has_its_own(
    sizes: list[int], tracked: bool, expected: list[int]
) -> None:
    n = sum(sizes)
    rows = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1)
    weights = [float(tracked)] * len(sizes)
    groups = Groups(
        np.repeat(np.arange(len(sizes)), sizes), np.repeat(np.float32(weights), sizes), sizes, weights, [], []
    )
    pieces = cut(rows, groups, 64, fill=16)
    assert [len(piece.ids) for piece in pieces] == expected
    np.testing.assert_array_equal(np.concatenate([piece.rows for piece in pieces]), rows)
