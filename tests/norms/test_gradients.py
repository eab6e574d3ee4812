"""Gradients of every layer and every learned parameter against central differences, also where data are awkward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from augserve.norms import AugNorm1d, ConvNorm2d, StatisticsNorm, generalized_median, use_statistics
from augserve.statistics import Statistics
from tests.norms.cases import CASES, STATISTICS_CASES, Case

GROUPS = [Statistics("batch"), Statistics("blend", tracked_weight=0.3), Statistics("blend", prior=2)]


def function_of(layer: nn.Module, x: Tensor) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The layer as a function of its input and all its parameters, and those."""
    names = [name for name, _ in layer.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        return y

    return run, (x.clone().requires_grad_(), *parameters)


def prepared(case: Case) -> tuple[nn.Module, Tensor]:
    layer = case.layer(torch.float64)
    for seed in (1, 2):
        layer(case.input(torch.float64, seed))
    return layer, case.input(torch.float64)


@pytest.mark.parametrize("name", [name for name in CASES if name != "conv"])
def test_every_parameter_in_training(name: str) -> None:
    layer, x = prepared(CASES[name])
    run, inputs = function_of(layer, x)
    assert torch.autograd.gradcheck(run, inputs)


def test_conv_norm_with_its_multiplier_held_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = prepared(CASES["conv"])
    assert isinstance(layer, ConvNorm2d)
    from augserve.norms import conv_norm

    v = layer.multiplier(*x.shape[2:])
    run, inputs = function_of(layer, x[:2])
    inputs[0].grad = None
    ours = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    monkeypatch.setattr(conv_norm, "spectral_multiplier", lambda *_: v)
    assert torch.autograd.gradcheck(run, inputs)
    held = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    torch.testing.assert_close(ours, held)


@pytest.mark.parametrize("name", STATISTICS_CASES)
def test_every_parameter_with_groups_and_blends(name: str) -> None:
    layer, x = prepared(CASES[name])
    assert isinstance(layer, StatisticsNorm)
    group = torch.tensor([0, 1, 2, 0, 2, 1])
    layer.eval()
    with use_statistics(layer, GROUPS, group):
        run, inputs = function_of(layer, x)
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    layer.train()
    with use_statistics(layer, GROUPS, group):
        run, inputs = function_of(layer, x)
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


SMOOTH = ["batch", "aug", "aug-3", "aug-learned", "instance-learned", "layer", "group-learned", "aug-graph-learned"]


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivatives(name: str) -> None:
    case = CASES[name]
    layer, x = prepared(case)
    x = x[:3, :, :2, :3] if case.shape == "2d" and name != "layer" else x
    run, inputs = function_of(layer, x[:2] if name == "layer" else x)
    assert torch.autograd.gradgradcheck(run, inputs)


AWKWARD = {
    "ties": [0.0, 0.0, 0.0, 1.0, 1.0, 5.0, 5.0, -2.0],
    "outlier": [0.1, -0.4, 0.9, 0.3, -1.2, 1e4, 0.2, 0.7],
    "a value at mu": [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 0.0],
    "mostly zeros": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.7, 2.0],
}


@pytest.mark.parametrize("phi", [1.25, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("data", AWKWARD)
def test_awkward_data(data: str, phi: float) -> None:
    x = torch.tensor(AWKWARD[data], dtype=torch.float64)[:, None].requires_grad_()
    # Where a value stands at mu the error of a central difference falls like the root of its step, for phi = 1.5.
    at_mu = data == "a value at mu"
    median = lambda x: generalized_median(x, phi, 0, rtol=1e-13, max_steps=200).value  # noqa: E731
    assert torch.autograd.gradcheck(median, (x,), eps=1e-9 if at_mu else 1e-6, atol=1e-4, rtol=1e-4)
    layer = AugNorm1d(1, phi, dtype=torch.float64)
    step = 1e-6 * max(float(x.detach().std()), 1.0)  # a narrow channel beside an outlier needs wider steps
    assert torch.autograd.gradcheck(layer, (x,), eps=step, atol=2e-3 if at_mu else 1e-4, rtol=1e-3)
