"""A stratified hold-out: the same share of every class, chosen by a fixed seed.

The order comes from NumPy's RandomState, whose streams are frozen by NumPy's random-number policy (NEP 19),
so that a split is the same under every NumPy version.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from augserve.errors import ConfigurationError

Indices = npt.NDArray[np.int64]


def stratified_holdout(labels: npt.NDArray[np.integer], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Choose which images are held out, so that every class gives the same share.

    A class of n images gives round(fraction * n) (halves up), but at least 1 and at most n - 1; a class of
    one image keeps it.

    Args:
        labels: integers (N,), the class of each image.
        fraction: the share that is held out, strictly between 0 and 1.
        seed: of the choice; a constant of the data set, never a training seed.

    Returns:
        Two ascending int64 index arrays, kept and held out: disjoint, and together all of 0..N-1.

    Raises:
        ConfigurationError: a fraction outside (0, 1).

    Example:
        >>> kept, held = stratified_holdout(np.arange(100) % 2, 0.1, seed=0)
        >>> len(kept), len(held)
        (90, 10)
    """
    if not 0 < fraction < 1:
        raise ConfigurationError(f"fraction must lie strictly between 0 and 1; got {fraction}")
    order = np.random.RandomState(seed).permutation(len(labels))  # (N,)
    is_held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        n = len(members)
        is_held[members[: min(n - 1, max(1, math.floor(fraction * n + 0.5)))]] = True
    return np.flatnonzero(~is_held).astype(np.int64), np.flatnonzero(is_held).astype(np.int64)
