"""Layers and networks on the native kernels: as without them, for autograd, compilers and exported programs too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from augserve.models import build_model
from augserve.norms import (
    AugNorm2d,
    BatchNorm2d,
    RobustNorm2d,
    StatisticsNorm,
    library,
    norm_layers,
    use_statistics,
)
from augserve.norms.kernels import dispatch
from augserve.norms.kernels.spec import AUG, ROBUST, ROBUST_RANGE
from augserve.statistics import Statistics
from tests.norms.cases import CASES, STATISTICS_CASES, Case
from tests.norms.kernels.native_cases import NEEDS_LIBRARY, NORMS, data, near, parameters
from tests.tolerances import COMPILED

pytestmark = NEEDS_LIBRARY


@pytest.mark.parametrize("name", STATISTICS_CASES)
def test_a_layer_is_the_same_without_the_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    fast, slow = case.layer(), case.layer()
    for seed in (1, 2):
        results = []
        for layer, found in ((fast, library.LIBRARY), (slow, None)):
            monkeypatch.setattr(library, "LIBRARY", found)
            x = case.input(seed=seed).requires_grad_()
            y = layer(x)
            y.square().sum().backward()
            assert x.grad is not None
            results.append([y.detach(), x.grad, *layer.buffers(), *(p.grad for p in layer.parameters())])
            layer.zero_grad()
        torch.testing.assert_close(results[0], results[1], **COMPILED)


def test_a_subclass_with_a_formula_of_its_own_is_asked() -> None:
    class Fixed(BatchNorm2d):
        def unbiased(self, spread: Tensor, count: int) -> Tensor:
            return torch.zeros_like(spread)

    class Renamed(Fixed):
        pass

    for kind in (Fixed, Renamed):
        layer = kind(4, momentum=1.0)
        layer(CASES["batch"].input())
        assert (layer.running_var == 0).all()
        assert layer.kernel_spec() is None
    assert type("Plain", (BatchNorm2d,), {})(4).kernel_spec() is not None


def test_running_statistics_are_known_to_have_changed() -> None:
    layer = AugNorm2d(4)
    before = layer.running_mean._version, layer.running_var._version
    layer(CASES["aug"].input())
    assert (layer.running_mean._version, layer.running_var._version) > before


@pytest.mark.parametrize("name", ["batch", "aug", "aug-3", "aug-learned", "robust"])
def test_gradients_can_be_differentiated_again(name: str) -> None:
    case = CASES[name]
    layers = case.layer(), case.layer(torch.float64)
    seconds = []
    for layer, dtype in zip(layers, (torch.float32, torch.float64), strict=True):
        x = case.input(dtype).requires_grad_()
        (first,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        seconds.append(second.double())
    scale = seconds[1].abs().max()
    torch.testing.assert_close(seconds[0] / scale, seconds[1] / scale, atol=5e-3, rtol=0)


def test_nothing_of_the_size_of_the_activations_is_kept_but_the_input() -> None:
    x = data((8, 4, 16, 16)).requires_grad_()
    for layer in (AugNorm2d(4), AugNorm2d(4, 1.3), BatchNorm2d(4), RobustNorm2d(4, track_running_stats=True)):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            layer(x)
        large = [t for t in kept if t.numel() >= x.numel()]
        assert {t.data_ptr() for t in large} == {x.data_ptr()}


def test_operators_pass_torchs_own_checks() -> None:
    x, weight, bias = data((4, 3, 5, 5)), *parameters(3)
    spec = NORMS["aug-1.5"]
    statistics = dispatch.norm_forward(x, weight, bias, None, None, *spec)[1]
    running = torch.zeros(3), torch.ones(3)
    order, offsets, lambdas = torch.tensor([2, 0, 1, 3]), torch.tensor([0, 1, 4]), torch.tensor([0.5, 0.0])
    swapped = data((3, 4, 5, 5)).transpose(0, 1)
    for operator, arguments in (
        (dispatch.norm_forward, (x, weight, bias, None, None, *spec)),
        (dispatch.norm_forward, (swapped, weight, bias, None, None, *spec)),
        (dispatch.norm_backward, (x, swapped, weight, statistics, None, *spec)),
        (dispatch.norm_backward, (x, x, weight, statistics, None, *spec)),
        (dispatch.norm_grouped, (x, weight, bias, None, *running, order, offsets, lambdas, *spec)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_network_compiles_into_one_graph_and_learns_the_same() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build_model("resnet20", norm="aug")
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    x = data((8, 3, 16, 16))
    for network in (model, compiled):
        network(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        near(theirs.grad, ours.grad.double(), 2e-2)
    for (name, ours), theirs in zip(norm_layers(model).items(), norm_layers(twin).values(), strict=True):
        torch.testing.assert_close(theirs.running_mean, ours.running_mean, atol=1e-3, rtol=1e-3, msg=name)


def test_an_exported_program_answers_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["aug"]
    layer, x = case.layer().eval(), case.input()
    with use_statistics(layer, Statistics("batch")):
        program = torch.export.export(layer, (x,)).module()
        expected = layer(x)
    torch.testing.assert_close(program(x), expected)
    monkeypatch.setattr(library, "LIBRARY", None)
    torch.testing.assert_close(program(x), expected, **COMPILED)


def test_cases_hold_a_norm_of_every_kernel() -> None:
    kinds = {layer.spec().kind for layer in map(Case.layer, CASES.values()) if isinstance(layer, StatisticsNorm)}
    assert kinds == {AUG, ROBUST, ROBUST_RANGE}
