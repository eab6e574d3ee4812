"""The DRO and DORO losses against the published code's numbers, SciPy, sorting, and their own properties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from torch import Tensor

from augserve.errors import ConfigurationError, InputError
from augserve.training.losses import Quantile, chi_square, chi_square_doro, cvar, cvar_doro
from tests.shared import shared_folder
from tests.tolerances import GOLDEN

Loss = Callable[[Tensor], Tensor]

# The published code stops Brent's search at sqrt(machine epsilon): eta and the gradient are as good as that. The
# value is quadratic around eta, except where eta is the largest loss.
CHI_SQUARE_VALUE = 2e-8
CHI_SQUARE_GRADIENT = 1e-6
# A minimum over eta found by SciPy in float64, of size 1000 near alpha = 1: eta lies 1000 spreads below the losses.
DUAL = 1e-9
# Float32 sums of some hundred weighted losses of size 1.
SINGLE = 1e-5

TIED = ("b20_ties", "b10_const")
LEVELS = (0.01, 0.1, 0.25, 0.37, 0.5, 0.8, 0.999, 1.0)
ALL: dict[str, Loss] = {
    "cvar": lambda losses: cvar(losses, 0.3),
    "chi_square": lambda losses: chi_square(losses, 0.3),
    "cvar_doro": lambda losses: cvar_doro(losses, 0.3, 0.1),
    "chi_square_doro": lambda losses: chi_square_doro(losses, 0.3, 0.1),
}


def sample(rows: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).exponential(size=rows))


def gradient(loss: Loss, losses: Tensor) -> tuple[Tensor, Tensor]:
    leaf = losses.clone().requires_grad_()
    value = loss(leaf)
    value.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def dual(losses: np.ndarray, alpha: float, masses: np.ndarray | None = None) -> float:
    """The chi-square loss by its definition: SciPy's minimum of a convex function of eta."""
    factor = math.sqrt(1 + (1 / alpha - 1) ** 2)
    low, high = losses.min() - 1e3 * np.ptp(losses) - 1, losses.max()

    def at(eta: float) -> float:
        return factor * math.sqrt(np.average(np.maximum(losses - eta, 0) ** 2, weights=masses)) + eta

    found = minimize_scalar(at, bounds=(low, high), method="bounded", options={"xatol": 1e-12, "maxiter": 1000})
    return min(float(found.fun), at(high))


def golden_cases() -> list[tuple[str, str, tuple[float, ...]]]:
    chi_and_cvar = [("cvar", (0.1,)), ("cvar", (0.2,)), ("chisq", (0.25,)), ("chisq", (0.5,))]
    doro = [("cvar_doro", (0.2, 0.005)), ("cvar_doro", (0.2, 0.05))]
    doro += [("chisq_doro", (0.25, 0.01)), ("chisq_doro", (0.25, 0.05))]
    vectors = ("b400_ce", "b400_outliers", "b64", "b37", *TIED)
    return [(v, name, level) for v in vectors for name, level in [("erm", ()), *chi_and_cvar, *doro]]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    path: Path = shared_folder("golden") / "doro_losses_f64.npz"
    return dict(np.load(path))


def test_every_golden_case_is_checked(golden: dict[str, np.ndarray]) -> None:
    names = {f"{v}__{name}__{'_'.join(map(str, level))}__value" for v, name, level in golden_cases()}
    assert names == {key for key in golden if key.endswith("__value")}


@pytest.mark.parametrize(("vector", "name", "level"), golden_cases())
def test_losses_as_the_published_code(
    golden: dict[str, np.ndarray], vector: str, name: str, level: tuple[float, ...]
) -> None:
    # The published code counts rows by int(alpha * B): quantile="truncated" here, where it matters.
    losses = {
        "erm": lambda x: cvar(x, 1.0),
        "cvar": lambda x: cvar(x, *level, quantile="truncated"),
        "cvar_doro": lambda x: cvar_doro(x, *level, quantile="truncated"),
        "chisq": lambda x: chi_square(x, *level),
        "chisq_doro": lambda x: chi_square_doro(x, *level, quantile="truncated"),
    }
    key = f"{vector}__{name}__{'_'.join(map(str, level))}"
    rows = torch.from_numpy(golden[f"loss_{vector}"])
    value, grad = gradient(losses[name], rows)
    expected, expected_grad = golden[f"{key}__value"], golden[f"{key}__grad"]
    exact = not name.startswith("chisq")
    rtol = GOLDEN[torch.float64]
    np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=rtol if exact else CHI_SQUARE_VALUE)
    if exact:
        # Which of tied rows counts is chance in the published code (an unstable sort): their sum is compared.
        groups = (rows[:, None] == rows[None, :]).double()
        np.testing.assert_allclose(groups @ grad, groups @ torch.from_numpy(expected_grad), rtol=0, atol=rtol)
    elif vector not in TIED:
        np.testing.assert_allclose(grad.numpy(), expected_grad, rtol=0, atol=CHI_SQUARE_GRADIENT)
        # q is proportional to l - eta on the rows above eta: its line through two of them crosses 0 at eta.
        i, j = torch.where(grad > 0, rows, -torch.inf).argmax(), torch.where(grad > 0, rows, torch.inf).argmin()
        eta = (grad[i] * rows[j] - grad[j] * rows[i]) / (grad[i] - grad[j])
        np.testing.assert_allclose(eta.numpy(), golden[f"{key}__eta"], rtol=0, atol=CHI_SQUARE_GRADIENT)


@pytest.mark.parametrize("rows", [1, 2, 7, 37, 64])
@pytest.mark.parametrize("alpha", LEVELS)
def test_cvar_is_the_mean_of_the_worst_fraction(rows: int, alpha: float) -> None:
    losses = sample(rows)
    # Each row as 1000 equal ones, so that alpha * B is whole.
    worst = np.sort(np.repeat(losses.numpy(), 1000))[::-1][: round(alpha * rows * 1000)]
    assert cvar(losses, alpha).item() == pytest.approx(worst.mean(), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 37, 64])
@pytest.mark.parametrize(("alpha", "epsilon"), [(0.25, 0.0), (0.25, 0.1), (0.5, 0.034), (0.1, 0.5), (1.0, 0.999)])
def test_doro_drops_the_largest_fraction_first(rows: int, alpha: float, epsilon: float) -> None:
    losses = sample(rows)
    left = np.sort(np.repeat(losses.numpy(), 1000))[::-1][round(epsilon * rows * 1000) :]
    expected = left[: round(alpha * (1 - epsilon) * rows * 1000)]
    assert cvar_doro(losses, alpha, epsilon).item() == pytest.approx(expected.mean(), rel=1e-12)
    values, counts = np.unique(left, return_counts=True)
    assert chi_square_doro(losses, alpha, epsilon).item() == pytest.approx(dual(values, alpha, counts), rel=DUAL)


@pytest.mark.parametrize("rows", [1, 2, 7, 37, 400])
@pytest.mark.parametrize("alpha", LEVELS[:-1])  # alpha = 1 has no minimiser; the mean is checked below
@pytest.mark.parametrize("offset", [0.0, -5.0, 1e3])
def test_chi_square_is_the_minimum_over_eta(rows: int, alpha: float, offset: float) -> None:
    losses = sample(rows) + offset
    assert chi_square(losses, alpha).item() == pytest.approx(dual(losses.numpy(), alpha), rel=DUAL, abs=DUAL)


@pytest.mark.parametrize("alpha", [0.05, 0.25, 0.5, 0.8, 0.999])
def test_chi_square_weights_lie_on_the_ball_and_attain_the_value(alpha: float) -> None:
    losses = sample(64)
    value, q = gradient(lambda x: chi_square(x, alpha), losses)
    assert q.min() >= 0
    assert q.sum().item() == pytest.approx(1.0)
    assert (q @ losses).item() == pytest.approx(value.item())
    assert ((64 * q - 1) ** 2).mean().item() == pytest.approx(min((1 / alpha - 1) ** 2, 63))


@pytest.mark.parametrize("loss", [cvar, chi_square])
def test_a_smaller_level_looks_at_worse_rows(loss: Callable[[Tensor, float], Tensor]) -> None:
    losses = sample(50)
    values = [loss(losses, alpha).item() for alpha in np.linspace(0.01, 1, 200)]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values))
    assert values[0] == pytest.approx(losses.max().item())
    assert values[-1] == pytest.approx(losses.mean().item())


def test_chi_square_bounds_cvar_from_above_up_to_one_half() -> None:
    losses = sample(50)
    for alpha in (0.05, 0.2, 0.35, 0.5):
        assert chi_square(losses, alpha) >= cvar(losses, alpha) - 1e-12


@pytest.mark.parametrize("quantile", ["fractional", "truncated"])
def test_doro_without_outliers_is_dro(quantile: Quantile) -> None:
    losses = sample(40)
    assert cvar_doro(losses, 0.25, 0.0, quantile=quantile).item() == pytest.approx(cvar(losses, 0.25).item())
    assert chi_square_doro(losses, 0.25, 0.0, quantile=quantile) == chi_square(losses, 0.25)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(ALL[name], (sample(37).requires_grad_(),))


@pytest.mark.parametrize("alpha", [1e-300, 1e-9, 0.1, 0.5, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("name", ["cvar", "chi_square", "cvar_doro", "chi_square_doro"])
@pytest.mark.parametrize("constant", [0.0, 0.7, -3e8])
def test_equal_losses_give_their_value(name: str, alpha: float, constant: float) -> None:
    function = {"cvar": cvar, "chi_square": chi_square}.get(name)
    doro = cvar_doro if name == "cvar_doro" else chi_square_doro
    losses = torch.full((10,), constant, dtype=torch.float64)
    value, grad = gradient(lambda x: function(x, alpha) if function else doro(x, alpha, 0.35), losses)
    assert value.item() == pytest.approx(constant)
    assert grad.sum().item() == pytest.approx(1.0)
    assert grad.min() >= 0
    if name == "chi_square":
        torch.testing.assert_close(grad, torch.full_like(grad, 0.1))


def test_rows_that_tie_for_the_largest_loss_share_the_chi_square_gradient() -> None:
    losses = torch.tensor([0.1, 2.0, 0.5, 2.0], dtype=torch.float64)
    value, grad = gradient(lambda x: chi_square(x, 0.25), losses)
    assert value.item() == 2.0
    assert grad.tolist() == [0.0, 0.5, 0.0, 0.5]


def test_tied_rows_count_in_their_order_in_cvar() -> None:
    losses = torch.tensor([0.1, 2.0, 2.0, 2.0], dtype=torch.float64)
    assert gradient(lambda x: cvar(x, 0.375), losses)[1].tolist() == pytest.approx([0.0, 2 / 3, 1 / 3, 0.0])


@pytest.mark.parametrize("name", ALL)
def test_the_order_of_the_rows_does_not_matter(name: str) -> None:
    losses = sample(37)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    value, grad = gradient(ALL[name], losses)
    shuffled_value, shuffled_grad = gradient(ALL[name], losses[order])
    torch.testing.assert_close(shuffled_value, value)
    torch.testing.assert_close(shuffled_grad, grad[order])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    losses = sample(400).to(dtype)
    value, grad = gradient(ALL[name], losses)
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    assert value.item() == pytest.approx(ALL[name](losses.double()).item(), rel=SINGLE)


@pytest.mark.parametrize("quantile", ["fractional", "truncated"])
def test_a_dropped_loss_may_be_infinite_but_not_nan(quantile: Quantile) -> None:
    for doro in (cvar_doro, chi_square_doro):
        losses = torch.cat([sample(19), torch.tensor([torch.inf])])
        value, grad = gradient(partial(doro, alpha=0.5, epsilon=0.05, quantile=quantile), losses)
        assert value.isfinite()
        assert grad.isfinite().all()
        assert grad[-1] == 0
        losses[3] = torch.nan
        assert doro(losses, 0.5, 0.1, quantile=quantile).isnan()


@pytest.mark.parametrize("name", ALL)
def test_a_nan_gives_nan(name: str) -> None:
    losses = sample(20)
    losses[5] = torch.nan
    assert ALL[name](losses).isnan()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("losses", [torch.zeros(0), torch.zeros(2, 3), torch.tensor(1.0), torch.arange(3)])
def test_losses_of_another_shape_or_type_are_refused(name: str, losses: Tensor) -> None:
    with pytest.raises(InputError, match=r"expected one floating loss a row, \(B,\)"):
        ALL[name](losses)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_levels_outside_0_to_1_are_refused(alpha: float) -> None:
    for loss in (cvar, chi_square):
        with pytest.raises(ConfigurationError, match=r"alpha must be in \(0, 1\]"):
            loss(torch.ones(3), alpha)


@pytest.mark.parametrize("epsilon", [-0.1, 1.0, math.nan])
def test_outlier_fractions_outside_0_to_1_are_refused(epsilon: float) -> None:
    for doro in (cvar_doro, chi_square_doro):
        with pytest.raises(ConfigurationError, match=r"epsilon must be in \[0, 1\)"):
            doro(torch.ones(3), 0.5, epsilon)


def test_an_unknown_quantile_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigurationError, match="'nearest'; choose one of: fractional, truncated"):
        cvar(torch.ones(3), 0.5, quantile="nearest")  # type: ignore[arg-type]


def test_truncation_to_no_row_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no row is left of 9"):
        cvar(torch.ones(9), 0.1, quantile="truncated")
    with pytest.raises(ConfigurationError, match="no row is left of 9"):
        cvar_doro(torch.ones(9), 0.1, 0.5, quantile="truncated")
    assert cvar(torch.ones(9), 0.1).item() == 1.0
