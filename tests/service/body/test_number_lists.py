"""Lists of numbers taken out of a body: the same array as the long way makes, or nothing at all."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augserve.service.body import number_lists
from augserve.service.body.number_lists import split_numbers

pytestmark = pytest.mark.skipif(number_lists.simdjson is None, reason="simdjson has no wheel for this Python")

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = NUMBERS | st.booleans() | st.none() | st.text(max_size=3)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2)
)
MEMBERS = st.dictionaries(st.sampled_from(["tracking", "top_k", "model"]), SCALARS, max_size=3)


def shape_of(tree: object) -> tuple[int, ...] | None:
    """Return the shape of nested lists of numbers, None of anything else: straight from the definition."""
    if not isinstance(tree, list):
        return () if type(tree) in {int, float} else None
    shapes = {shape_of(one) for one in tree}
    if not tree:
        return (0,)
    return (len(tree), *shape) if len(shapes) == 1 and (shape := shapes.pop()) is not None else None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tree=TREES, members=MEMBERS)
def test_it_is_what_the_long_way_makes_or_nothing(tree: object, members: dict[str, object]) -> None:
    body = {"instances": tree, **members}
    came = split_numbers(orjson.dumps(body))
    if came is not None:
        assert shape_of(tree) == came.values.shape
        assert came.members == members
        with np.errstate(over="ignore"):
            expected = np.asarray(orjson.loads(orjson.dumps(tree)), np.float64).astype(np.float32)
        np.testing.assert_array_equal(came.values, expected)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    first=st.booleans(),
    members=st.fixed_dictionaries({}, optional={"tracking": st.booleans(), "batch_size": st.integers(1, 9)}),
)
def test_arrays_are_taken(shape: list[int], seed: int, first: bool, members: dict[str, object]) -> None:
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    body = {"instances": rows.tolist(), **members} if first else {**members, "instances": rows.tolist()}
    came = split_numbers(orjson.dumps(body, option=orjson.OPT_INDENT_2))
    assert came is not None
    assert came.members == members
    np.testing.assert_array_equal(came.values, rows)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b'{"instances": 1}',
        b'{"instances": [[1, 2], [3]]}',
        b'{"instances": [[1, [2]]]}',
        b'{"instances": [[[1], [2]], [[3], 4]]}',
        b'{"instances": [1, true]}',
        b'{"instances": [1, null]}',
        b'{"instances": ["1"]}',
        b'{"instances": [{}]}',
        b'{"instances": [NaN]}',
        b'{"instances": [01]}',
        b'{"instances": [1,]}',
        b'{"instances": [1] [2]}',
        b'{"instances": [1]}]',
        b'{"instances": [1], "return": ["logits"]}',
        b'{"instances": 0, "batch_size": [1]}',
        b'{"instances": "x", "model": [1]}',
        b'{"instances": [1e999]}',
        b'{"instances": [' + b"9" * 400 + b"]}",
        b"[" * 100_000,
        b'{"instances": ' + b"[" * 5000 + b"1" + b"]" * 5000 + b"}",
        b'{"instances": [1\xff]}',
    ],
)
def test_anything_else_is_left_alone(body: bytes) -> None:
    assert split_numbers(body) is None


def test_what_was_parsed_before_changes_nothing() -> None:
    for _ in range(3):
        assert split_numbers(b'{"instances": [[1, 2], [3]]}') is None
        came = split_numbers(b'{"instances": [[1, 2], [3, 4]]}')
        assert came is not None
        kept = came.values
        assert split_numbers(b'{"instances": [[5, 6], [7, 8]]}') is not None
        assert kept.tolist() == [[1, 2], [3, 4]]
