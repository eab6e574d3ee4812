"""The solver on the device, against bisection in float64: accuracy, certificate, passes, and rare ways."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from augserve.norms.kernels.triton import plan as triton_plan
from augserve.norms.median import Status
from augserve.norms.median.problem import reference
from tests.norms.kernels.triton.cases import CASES, DEVICES, WARNINGS, draw, norm, rows, spacing
from tests.tolerances import MEDIAN

pytestmark = WARNINGS
RTOL = 1e-4
PHIS = (1.05, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0, 8.0)
EVERY = [(1000, phi) for phi in PHIS] + [
    (49, 1.1),
    (49, 1.5),
    (49, 3.0),
    (7, 1.05),
    (7, 1.5),
    (3, 1.5),
    (3, 3.0),
    (2, 1.5),
]
LARGE = [
    (3000, 1.05, ("zeros", "offset")),
    (3000, 1.5, ("relu", "offset", "constant", "nan")),
    (3000, 2.0, CASES),
    (3000, 3.0, ("zeros", "offset", "nan")),
]


@pytest.fixture
def many_splits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let sets of a few thousand values be split."""
    monkeypatch.setattr(triton_plan, "SHARE", 1500)
    triton_plan.plan.cache_clear()
    yield
    triton_plan.plan.cache_clear()


def solve(x: Tensor, phi: float | Tensor, device: str, start: Tensor | None = None, **options: int) -> list[Tensor]:
    exponents = phi.to(device) if isinstance(phi, Tensor) else None
    exponent = 0.0 if isinstance(phi, Tensor) else phi
    start = None if start is None else start.to(device)
    options = {"max_steps": 32, **options}
    found = norm.median(x.to(device), exponents, start, exponent, RTOL, **options)
    return [part.cpu() for part in found]


def check(x: Tensor, phi: float | list[float], found: list[Tensor], bar: float = MEDIAN[torch.float32]) -> None:
    """Every finite row: the value near the reference, inside the data, in a bracket as narrow as asked."""
    value, lower, upper, steps, status, mean, var = found
    for r, row in enumerate(x.double()):
        one = phi if isinstance(phi, float) else phi[r]
        expected = reference(row[None], one)[0]
        std = row.std(correction=0)
        where = (r, one, float(value[r]), float(expected), int(steps[r]))
        error = spacing(expected)
        assert abs(value[r] - expected) <= bar * std + error, where
        assert row.min() <= value[r] <= row.max(), where
        assert upper[r] - lower[r] <= RTOL * (1 + 1e-3) * std + 2 * error, where
        assert lower[r] - 2e-5 * std - 2 * error <= expected <= upper[r] + 2e-5 * std + 2 * error, where
        assert (int(status[r]), int(steps[r]) <= 32) == (Status.CONVERGED, True), where
        torch.testing.assert_close(mean[r].double(), row.mean(), rtol=1e-6, atol=1e-6 * float(std))
        torch.testing.assert_close(var[r].double(), row.var(correction=0), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("m", "phi"), EVERY)
def test_small_sets(m: int, phi: float, device: str) -> None:
    x = rows(m)
    found = solve(x, phi, device)
    # A few values have no density to speak of: the certificate is what counts.
    check(x[:-1], phi, found, MEDIAN[torch.float32] if m >= 32 else RTOL + 1e-5)
    assert math.isnan(found[0][-1])
    assert int(found[4][-1]) == Status.NOT_FINITE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("m", "phi", "cases"), LARGE)
def test_large_sets(m: int, phi: float, cases: tuple[str, ...], device: str, many_splits: None) -> None:
    _large_sets(m, phi, cases, device, limit=1024)


@pytest.mark.parametrize("device", DEVICES)
def test_large_sets_by_the_rule(device: str) -> None:
    _large_sets(20000, 1.5, ("normal", "outlier"), device)


def _large_sets(m: int, phi: float, cases: tuple[str, ...], device: str, **options: int) -> None:
    x = rows(m, cases)
    found = solve(x, phi, device, **options)
    finite = [r for r, case in enumerate(cases) if case != "nan"]
    check(x[finite], phi, [part[finite] for part in found])
    for r in set(range(len(cases))) - set(finite):
        assert math.isnan(found[0][r])
        assert int(found[4][r]) == Status.NOT_FINITE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", [1024, 1], ids=["small", "large"])
def test_an_exponent_for_each_set(limit: int, device: str) -> None:
    phi = [1.1, 2.0, 2.7, 8.0]
    x = rows(100, ("relu", "normal", "outlier", "offset"))
    check(x, phi, solve(x, torch.tensor(phi), device, limit=limit))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("where", "limit"), [("right", 1024), ("off", 1024), ("outside", 1024), ("nan", 1024), ("off", 1)]
)
def test_the_start_changes_passes_only(where: str, limit: int, device: str) -> None:
    x = rows(300, ("relu", "offset"))
    right = reference(x.double(), 1.5).float()
    start = {"right": right, "off": right + 0.5, "outside": right - 1e6, "nan": right * math.nan}[where]
    found = solve(x, 1.5, device, start, limit=limit)
    check(x, 1.5, found)
    if where == "right" and limit > 1:
        assert int(found[3].max()) <= int(solve(x, 1.5, device)[3].max())


@pytest.mark.parametrize("device", DEVICES)
def test_a_straggler_is_finished(device: str, many_splits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from augserve.norms.kernels.triton.launch import Task

    monkeypatch.setattr(Task, "passes", 1)
    x = rows(2000, ("normal", "outlier"))
    for phi in (1.25, 3.0):
        check(x, phi, solve(x, phi, device, limit=1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", [4096, 1], ids=["small", "large"])
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_no_finite_size_overflows(scale: float, limit: int, device: str) -> None:
    x = rows(1500, ("normal", "relu"))
    plain, scaled = (solve(values, 1.5, device, limit=limit) for values in (x, x * scale))
    torch.testing.assert_close(scaled[0] / scale, plain[0], rtol=1e-4, atol=1e-4)
    assert scaled[4].tolist() == [Status.CONVERGED] * 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("phi", [1.5, 2.0])
def test_a_sample_that_misleads(phi: float, device: str) -> None:
    """The values that are sampled are all the same, and far from the rest."""
    x = torch.full((3, 9000), 100.0)
    x[:, :1500] = draw("normal", 1500)
    x[1, ::7] = -3.0
    x[2, 5] = 101.0
    found = solve(x, phi, device)
    check(x, phi, found)


@pytest.mark.parametrize("device", DEVICES)
def test_too_few_passes_are_told(device: str) -> None:
    x = rows(300, ("normal", "relu"))
    for limit in (2048, 1):
        found = solve(x, 1.1, device, limit=limit, max_steps=2)
        assert found[4].tolist() == [Status.MAX_STEPS] * 2
        expected = reference(x.double(), 1.1)
        assert (found[1] <= expected).all()
        assert (expected <= found[2]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_every_time(device: str, many_splits: None) -> None:
    x = rows(3000, ("zeros",))
    for one, other in zip(solve(x, 1.5, device, limit=1), solve(x, 1.5, device, limit=1), strict=True):
        assert torch.equal(one, other)


def test_constants_are_those_of_the_kernels() -> None:
    from augserve.norms.kernels.triton import launch, newton, state, statistics

    classes = (newton.MEAN, newton.ROOT, newton.UP_TO_2, newton.ANY)
    assert tuple(c.value for c in classes) == (launch.MEAN, launch.ROOT, launch.UP_TO_2, launch.ANY)
    kinds = (statistics.AUG, statistics.ROBUST, statistics.ROBUST_RANGE)
    assert tuple(c.value for c in kinds) == (launch.AUG, launch.ROBUST, launch.ROBUST_RANGE)
    fields = (statistics.FIELDS, state.STATE_FIELDS, state.PARTIAL_FIELDS)
    assert fields == (launch.STATISTICS, launch.STATE, launch.PARTIAL)
