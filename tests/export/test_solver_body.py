"""The solver in AugNorm's function: as exact on hard values as its tolerance says, beside bisection in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests import oracles
from tests.export.native_operator_cases import SOLVER, Feed, one_node, run, session

ROWS, POSITIONS = 8, 60
CASES = ("normal", "relu", "student", "outlier", "clusters", "zeros", "integers", "far", "narrow", "wide", "flat")


def draw() -> npt.NDArray[np.float32]:
    """Values (N, C, L), a channel of each case."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((ROWS, POSITIONS))
    uniform = rng.uniform(size=normal.shape)
    outlier = normal.copy()
    outlier[0, 0] = 1e4
    channels = {
        "normal": normal,
        "relu": normal.clip(0),
        "student": normal / rng.chisquare(2, normal.shape) ** 0.5,
        "outlier": outlier,
        "clusters": np.where(uniform < 0.7, 0.0, 10.0) + 0.01 * normal,
        "zeros": np.where(uniform < 0.9, 0.0, normal),
        "integers": (2 * normal).round(),
        "far": 50 + normal,
        "narrow": 1e-3 * normal,
        "wide": 1e12 * normal,
        "flat": np.full_like(normal, 3.7),
    }
    return np.stack([channels[case] for case in CASES], axis=1).astype(np.float32)


def feed(x: npt.NDArray[np.float32]) -> Feed:
    zeros, ones = np.zeros(len(CASES), np.float32), np.ones(len(CASES), np.float32)
    parameters = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_spread": ones}
    return {
        "x": x,
        **parameters,
        "group": np.zeros(ROWS, np.int64),
        "tracked_weight": np.zeros(ROWS, np.float32),
    }


@pytest.mark.parametrize("phi", [1.02, 1.1, 1.25, 1.5, 1.8, 1.99, 2.5, 8.0])
def test_the_median_of_hard_values_is_within_the_tolerance(phi: float) -> None:
    x = draw()
    name = "AugNorm" if phi < 2 else "AugNormAbove2"
    model = one_node(name, ("N", "C", "L"), attributes={**SOLVER, "phi": phi, "eps": 1e-12})
    y = run(session(model, operators=False), feed(x)).astype(np.float64)
    for k, case in enumerate(CASES):
        values = x[:, k].astype(np.float64)
        center = oracles.generalized_median(values.ravel(), phi)
        spread = ((values - center) ** 2).mean() + 1e-12
        rounding = 1e-7 * (1 + abs(values).max() / spread**0.5)
        error = abs(y[:, k] - (values - center) / spread**0.5).max()
        assert error <= SOLVER["rtol"] + 4 * rounding, (case, error, rounding)
