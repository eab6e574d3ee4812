"""The generalized median: its accuracy bar, its certificate, its invariances and its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from augserve.errors import ConfigurationError, InputError
from augserve.norms import generalized_median
from augserve.norms.median import Status
from augserve.norms.median.problem import objective, residual
from tests import oracles
from tests.tolerances import MEDIAN

PHIS = (1.0, 1.05, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0, 8.0, math.inf)
SIZES = (1, 2, 4, 32, 512, 16384, 131072)
CASES = ("normal", "relu", "relu-1", "student", "outlier", "clusters", "lognormal", "zeros", "constant")


def draw(case: str, rows: int, m: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(rows, m, generator=g, dtype=torch.float64)

    def uniform() -> Tensor:
        return torch.rand(rows, m, generator=g, dtype=torch.float64)

    x = normal()
    if case == "relu":
        x = x.clamp_min(0)
    elif case == "relu-1":
        x = (x - 1).clamp_min(0)
    elif case == "student":
        x = x / ((normal() ** 2 + normal() ** 2) / 2).sqrt()
    elif case == "outlier":
        x[:, 0] = 1e4
    elif case == "clusters":
        x = torch.where(uniform() < 0.7, 0.0, 10.0) + 0.1 * x
    elif case == "lognormal":
        x = torch.exp(1.5 * x)
    elif case == "zeros":
        x = torch.where(uniform() < 0.9, 0.0, x)
    elif case == "constant":
        x = torch.full((rows, m), 3.7, dtype=torch.float64)
    return x


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_accuracy_bar(phi: float, dtype: torch.dtype) -> None:
    for m in SIZES:
        if dtype == torch.float32 and m < 32:
            continue
        for k, case in enumerate(CASES):
            x = draw(case, 12 if m <= 512 else 1, m, seed=k).to(dtype)
            result = generalized_median(x, phi, dim=1)
            for row in range(len(x)):
                values = x[row].double().numpy()
                expected = oracles.generalized_median(values, phi)
                # The oracle's own rounding, for constant data, whose standard deviation is 0 up to rounding.
                scale = max(values.std(), 1e-9 * abs(values).max())
                where = (case, m, row, int(result.num_steps[row]))
                assert abs(float(result.value[row]) - expected) <= MEDIAN[dtype] * scale, where
                assert values.min() <= float(result.value[row]) <= values.max(), where
                assert int(result.num_steps[row]) <= 32, where


@pytest.mark.parametrize("phi", [1.05, 1.5, 1.9, 2.5, 8.0])
def test_bracket_is_a_certificate(phi: float) -> None:
    x = draw("normal", 16, 300)
    result = generalized_median(x, phi, dim=1)
    assert (result.status == Status.CONVERGED).all()
    assert (residual(x, result.lower, phi) <= 1e-9).all()
    assert (residual(x, result.upper, phi) >= -1e-9).all()
    width = result.upper - result.lower
    assert (width <= 1e-6 * x.std(dim=1, correction=0) * (1 + 1e-6)).all()


def test_too_few_steps_give_a_wide_but_certain_bracket() -> None:
    x = draw("student", 8, 200)
    result = generalized_median(x, 1.1, dim=1, max_steps=3)
    assert (result.status == Status.MAX_STEPS).all()
    assert Status.MAX_STEPS.message
    exact = torch.tensor([oracles.generalized_median(row.numpy(), 1.1) for row in x])
    assert ((result.lower <= exact) & (exact <= result.upper)).all()


@pytest.mark.parametrize("phi", [1.05, 1.25, 1.5, 1.95])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_every_pass_leaves_the_root_in_the_bracket(phi: float, dtype: torch.dtype) -> None:
    rounding = 1e-11 if dtype == torch.float64 else 2e-7 / (phi - 1)
    for case in CASES:
        for m in (3, 40, 700):
            x = draw(case, 8, m).to(dtype)
            exact = torch.tensor([oracles.generalized_median(row.double().numpy(), phi) for row in x])
            slack = rounding * x.double().std(dim=1, correction=0) + 1e-6 * (case == "constant")
            for steps in range(1, 7):
                result = generalized_median(x, phi, dim=1, max_steps=steps, rtol=1e-5)
                assert (result.lower.double() <= exact + slack).all(), (case, m, steps)
                assert (result.upper.double() >= exact - slack).all(), (case, m, steps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_pass_at_the_root_closes_the_bracket_by_itself(dtype: torch.dtype) -> None:
    x = draw("normal", 8, 4096).to(dtype)
    exact = torch.tensor([oracles.generalized_median(row.double().numpy(), 1.5) for row in x], dtype=dtype)
    result = generalized_median(x, 1.5, dim=1, start=exact, rtol=1e-5)
    assert int(result.num_steps.max()) == 1
    assert (result.status == Status.CONVERGED).all()


values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(values, st.sampled_from([1.0, 1.1, 1.5, 2.0, 3.0, math.inf]), st.randoms())
def test_invariances(data: list[float], phi: float, random: object) -> None:
    x = torch.tensor(data, dtype=torch.float64)
    tolerance = 2e-6 * float(x.std(correction=0)) + 1e-9 * float(x.abs().max())
    mu = float(generalized_median(x, phi).value)
    order = torch.tensor(np.random.default_rng(len(data)).permutation(len(data)))
    assert abs(float(generalized_median(x[order], phi).value) - mu) <= tolerance
    assert abs(float(generalized_median(-x, phi).value) + mu) <= tolerance
    assert abs(float(generalized_median(3 * x + 7, phi).value) - (3 * mu + 7)) <= 4 * tolerance + 1e-9
    assert float(x.min()) <= mu <= float(x.max())


@settings(max_examples=40, deadline=None)
@given(values, st.sampled_from([1.2, 1.5, 2.5]))
def test_no_other_point_has_a_smaller_objective(data: list[float], phi: float) -> None:
    x = torch.tensor([data], dtype=torch.float64)
    mu = generalized_median(x, phi, dim=1, rtol=1e-9, max_steps=64).value
    best = float(objective(x, mu, phi))
    for shift in (1e-3, 1e-1, 1.0):
        for sign in (-1, 1):
            assert best <= float(objective(x, mu + sign * shift * (1 + x.std(correction=0)), phi)) * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 1.7e308])
@pytest.mark.parametrize("phi", [1.0, 1.5, 2.0, 3.0, math.inf])
def test_huge_and_tiny_data_neither_overflow_nor_vanish(scale: float, phi: float) -> None:
    x = 2 * torch.rand(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    small, large = generalized_median(x, phi, dim=1), generalized_median(x * scale, phi, dim=1)
    torch.testing.assert_close(large.value / scale, small.value, rtol=1e-6, atol=1e-8)


def test_a_channel_with_nan_or_inf_is_nan_and_its_neighbours_are_not() -> None:
    x = draw("normal", 4, 50)
    clean = generalized_median(x, 1.5, dim=1)
    x[1, 3], x[2, 5] = math.nan, math.inf
    result = generalized_median(x, 1.5, dim=1)
    assert torch.isnan(result.value[1:3]).all()
    assert (result.status[1:3] == Status.NOT_FINITE).all()
    assert torch.equal(result.value[[0, 3]], clean.value[[0, 3]])


def test_any_dimensions_reduce() -> None:
    x = draw("normal", 6, 20).reshape(2, 3, 4, 5)
    result = generalized_median(x, 1.5, dim=(0, -1))
    assert result.value.shape == (3, 4)
    expected = oracles.generalized_median(x[:, 1, 2].flatten().numpy(), 1.5)
    assert float(result.value[1, 2]) == pytest.approx(expected, abs=1e-6)
    assert generalized_median(x).value.shape == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = draw("normal", 3, 400).to(dtype)
    result = generalized_median(x, 1.5, dim=1)
    assert result.value.dtype == dtype
    expected = generalized_median(x.float(), 1.5, dim=1).value.to(dtype)
    assert torch.equal(result.value, expected)


@pytest.mark.parametrize("phi", [1.0, 1.2, 1.5, 2.0, 2.7, 4.0, math.inf])
def test_gradient_agrees_with_differences(phi: float) -> None:
    x = draw("student", 3, 9).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: generalized_median(x, phi, dim=1, rtol=1e-13, max_steps=200).value, (x,)
    )


@pytest.mark.parametrize("phi", [1.0, 1.3, 1.5, 2.0, 3.0, math.inf])
def test_gradient_weights_sum_to_one_also_on_ties(phi: float) -> None:
    x = torch.tensor([[0.0, 0, 0, 1, 5], [2, 2, 2, 2, 2], [0, 1, 2, 3, 4]], dtype=torch.float64, requires_grad=True)
    generalized_median(x, phi, dim=1).value.sum().backward()
    assert x.grad is not None
    assert (x.grad >= 0).all()
    torch.testing.assert_close(x.grad.sum(dim=1), torch.ones(3, dtype=torch.float64))


def test_a_value_at_the_median_takes_the_limit() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    generalized_median(x, 1.5).value.backward()
    assert x.grad is not None
    assert float(x.grad[2]) == pytest.approx(1.0, abs=1e-6)


def test_bad_arguments_are_refused() -> None:
    x = torch.randn(4)
    for phi in (0.9, -1.0, math.nan):
        with pytest.raises(ConfigurationError, match="phi must lie in"):
            generalized_median(x, phi)
    with pytest.raises(ConfigurationError, match="rtol"):
        generalized_median(x, rtol=0)
    with pytest.raises(InputError, match="floating point"):
        generalized_median(torch.arange(4))
    with pytest.raises(InputError, match="at least one value"):
        generalized_median(torch.empty(0))


def test_an_exponent_for_each_channel() -> None:
    x = draw("lognormal", 6, 60).reshape(6, 3, 20)
    phi = torch.tensor([1.0, 1.3, 1.5, 2.0, 4.0, math.inf], dtype=torch.float64)
    result = generalized_median(x, phi[:, None], dim=2)
    for row, exponent in enumerate(phi.tolist()):
        for column in range(3):
            alone = generalized_median(x[row, column], exponent)
            tolerance = 1e-6 * float(x[row, column].std())
            assert abs(float(result.value[row, column] - alone.value)) <= tolerance
            assert int(result.num_steps[row, column]) <= 32
    assert (result.status == Status.CONVERGED).all()
    assert (result.num_steps[phi[:, None].expand(6, 3) == 2] == 0).all()
    for wrong in (torch.tensor([1.5, 0.5, 2.0]), torch.tensor([1.5, math.nan, 2.0])):
        with pytest.raises(ConfigurationError, match="every phi"):
            generalized_median(x, wrong, dim=(0, 2))
    with pytest.raises(ConfigurationError, match="broadcast"):
        generalized_median(x, torch.tensor([1.5, 2.0]), dim=2)


@pytest.mark.parametrize("case", CASES)
def test_accuracy_bar_with_an_exponent_for_each_row(case: str) -> None:
    phis = torch.tensor([phi for phi in PHIS for _ in range(4)], dtype=torch.float64)
    for m in (2, 4, 32, 512, 16384):
        x = draw(case, len(phis), m, seed=m)
        result = generalized_median(x, phis, dim=1)
        for row, phi in enumerate(phis.tolist()):
            expected = oracles.generalized_median(x[row].numpy(), phi)
            scale = max(float(x[row].std(correction=0)), 1e-9 * float(x[row].abs().max()))
            assert abs(float(result.value[row]) - expected) <= MEDIAN[torch.float64] * scale, (phi, m)
            assert int(result.num_steps[row]) <= 32, (phi, m)


def test_gradient_in_the_exponent_and_second_derivatives() -> None:
    x = draw("student", 5, 9).requires_grad_()
    phi = torch.tensor([1.2, 1.5, 2.0, 2.6, 4.0], dtype=torch.float64, requires_grad=True)

    def solve(x: Tensor, phi: Tensor) -> Tensor:
        return generalized_median(x, phi, dim=1, rtol=1e-13, max_steps=200).value

    assert torch.autograd.gradcheck(solve, (x, phi))
    assert torch.autograd.gradgradcheck(solve, (x, phi))
    ends = torch.tensor([1.0, math.inf, 1.0, 2.0, 1.5], dtype=torch.float64, requires_grad=True)
    solve(x, ends).sum().backward()
    assert (ends.grad[:3] == 0).all()


@pytest.mark.parametrize("phi", [1.3, 1.5, 2.0, 3.0])
def test_second_derivative_exists_for_a_fixed_exponent(phi: float) -> None:
    x = draw("normal", 3, 8).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: generalized_median(x, phi, 1, rtol=1e-13, max_steps=200).value, (x,)
    )


def test_function_transforms() -> None:
    x = draw("normal", 6, 20).reshape(2, 3, 20)

    def median(x: Tensor) -> Tensor:
        return generalized_median(x, 1.5).value

    together = generalized_median(x, 1.5, dim=2).value
    torch.testing.assert_close(torch.vmap(torch.vmap(median))(x), together)
    each = torch.vmap(lambda x, phi: generalized_median(x, phi, dim=1).value, in_dims=(1, None), out_dims=1)
    torch.testing.assert_close(each(x, torch.tensor(1.5, dtype=torch.float64)), together)
    weights = torch.vmap(torch.func.grad(median))(x[0])
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert torch.func.jacrev(torch.func.grad(median))(x[0, 0]).shape == (20, 20)


@pytest.mark.parametrize("phi", [1.0, 1.5, 2.0, 3.0, torch.tensor([1.2, 1.5, 4.0])], ids=str)
def test_compiled_and_exported(phi: float | Tensor) -> None:
    class Median(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result = generalized_median(x, phi, dim=1)
            return result.value + 0 * result.num_steps

    torch._dynamo.reset()
    x = draw("relu", 3, 50).float().requires_grad_()
    compiled = torch.compile(Median(), backend="aot_eager", fullgraph=True)
    expected, ours = Median()(x), compiled(x)
    torch.testing.assert_close(ours, expected)
    (expected_grad,), (grad,) = (torch.autograd.grad(y.square().sum(), x) for y in (expected, ours))
    torch.testing.assert_close(grad, expected_grad)
    program = torch.export.export(Median(), (x.detach(),), dynamic_shapes=({1: torch.export.Dim("m", min=3)},))
    longer = draw("relu", 3, 70).float()
    torch.testing.assert_close(program.module()(longer), Median()(longer))


def test_autocast_does_not_lower_the_precision() -> None:
    x = draw("normal", 3, 400).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = generalized_median(x, 1.5, dim=1).value
    assert torch.equal(inside, generalized_median(x, 1.5, dim=1).value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_exponent_too_large_for_powers_is_inf(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 0, 0, 0, 1, 1.5, 2, 10], dtype=dtype, requires_grad=True)
    for phi in (1e6, 1e8, 1e9, 1e10, 1e20, 1e300):
        value = generalized_median(x, phi).value
        assert float(value.detach()) == pytest.approx(5, abs=1e-4)
        (grad,) = torch.autograd.grad(value, x)
        torch.testing.assert_close(grad.sum(), torch.ones((), dtype=dtype))
    each = torch.tensor([1.5, 1e20], dtype=torch.float64)
    assert float(generalized_median(x.detach().double().expand(2, 8), each, 1).value[1]) == 5


@pytest.mark.parametrize("phi", [1.0, 1.5, 3.0, math.inf])
def test_gradients_of_data_that_span_the_whole_dtype(phi: float) -> None:
    x = torch.tensor([3e38, -3e38, 1.5e38, 1e38], requires_grad=True)
    (grad,) = torch.autograd.grad(generalized_median(x, phi).value, x)
    small = (x.detach() / 2**40).requires_grad_()
    (expected,) = torch.autograd.grad(generalized_median(small, phi).value, small)
    torch.testing.assert_close(grad, expected)


def test_a_mean_far_from_0_is_rounded_once() -> None:
    x = (1e6 + 0.25 * torch.randn(131072, generator=torch.Generator().manual_seed(0)).exp()).float()
    mean = float(x.double().mean())
    assert abs(float(generalized_median(x, 2.0).value) - mean) <= 0.0625  # the spacing of float32 there


def test_no_sets_and_other_shapes() -> None:
    assert generalized_median(torch.empty(0, 4), dim=1).value.shape == (0,)
    with pytest.raises(InputError, match="at least one value"):
        generalized_median(torch.empty(4, 0), dim=1)
    for dim in (None, 0, -1, (0,)):
        assert float(generalized_median(torch.tensor(3.0), dim=dim).value) == 3.0
    for dim in (4, -5, (0, 0), (0, -4)):
        with pytest.raises(InputError, match="different dimensions from -4 to 3"):
            generalized_median(torch.zeros(2, 2, 2, 2), dim=dim)
