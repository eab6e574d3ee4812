"""The hold-out: shares, disjointness, coverage, and that it is the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augserve.data.split import stratified_holdout
from augserve.errors import ConfigurationError

labels_st = st.lists(st.integers(0, 4), max_size=200).map(lambda x: np.array(x, dtype=np.int64))


@given(labels_st, st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_parts_are_disjoint_cover_all_and_share_every_class(labels, fraction, seed):
    kept, held = stratified_holdout(labels, fraction, seed)
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(labels)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    for label in np.unique(labels):
        n, n_held = (labels == label).sum(), (labels[held] == label).sum()
        if n == 1:
            assert n_held == 0
        else:
            assert 1 <= n_held <= n - 1
            assert abs(n_held - fraction * n) <= 1


@given(labels_st, st.integers(0, 2**32 - 1))
def test_the_same_seed_gives_the_same_split(labels, seed):
    first, second = (stratified_holdout(labels, 0.3, seed) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_seed_gives_another_split():
    labels = np.arange(200) % 2
    assert not np.array_equal(stratified_holdout(labels, 0.5, 0)[1], stratified_holdout(labels, 0.5, 1)[1])


def test_the_split_is_the_one_of_every_numpy_version():
    assert stratified_holdout(np.arange(20) % 2, 0.2, seed=0)[1].tolist() == GOLDEN


GOLDEN = [1, 8, 18, 19]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_fraction_outside_the_open_interval_is_refused(fraction):
    with pytest.raises(ConfigurationError, match="strictly between 0 and 1"):
        stratified_holdout(np.arange(4), fraction, 0)
