"""max(0, norm(x) + residual) in one call of a layer is what the layer, an addition and a ReLU give in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augserve.models.blocks import normed_relu
from augserve.norms import AugNorm2d, BatchNorm2d, RobustNorm2d, StatisticsNorm

LAYERS: dict[str, Callable[[int], StatisticsNorm]] = {
    "aug": lambda c: AugNorm2d(c, 1.5),
    "aug-1.7": lambda c: AugNorm2d(c, 1.7),
    "aug-3": lambda c: AugNorm2d(c, 3.0),
    "aug-learned": lambda c: AugNorm2d(c, learn_phi=True),
    "median": lambda c: AugNorm2d(c, 1.0),
    "batch": BatchNorm2d,
    "robust": lambda c: RobustNorm2d(c, track_running_stats=True),
}
SHAPES = {"rows": (6, 3, 5, 5), "lanes": (8, 16, 16, 16), "in place": (2, 4, 40, 32), "small": (16, 64, 4, 4)}
TOLERANCE = 2e-5  # of float32: sums over as many values in another order


def drawn(layer: StatisticsNorm) -> StatisticsNorm:
    """Give the layer an affine map of its own: a gate that is open at x = mu hides a wrong shift."""
    torch.manual_seed(1)
    nn.init.normal_(layer.get_parameter("weight"))
    nn.init.normal_(layer.get_parameter("bias"))
    return layer


def outcome(layer: StatisticsNorm, parts: list[Tensor | None], call: Callable[..., Tensor]) -> list[Tensor]:
    """Return y, all gradients of a weighted sum of it, and the buffers, of a copy of the layer."""
    layer = copy.deepcopy(layer)
    x, residual = (None if part is None else part.detach().clone().requires_grad_() for part in parts)
    y = call(layer, x, residual)
    torch.manual_seed(2)
    y.backward(torch.randn_like(y))
    leaves = [x, residual, *layer.parameters()]
    return [
        y.detach(),
        *(leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None),
        *layer.buffers(),
    ]


def in_one(layer: StatisticsNorm, x: Tensor, residual: Tensor | None) -> Tensor:
    return layer(x, residual=residual, relu=True)  # type: ignore[no-any-return]


def step_by_step(layer: StatisticsNorm, x: Tensor, residual: Tensor | None) -> Tensor:
    y = layer(x)
    return F.relu(y if residual is None else y + residual)


def compare(layer: StatisticsNorm, parts: list[Tensor | None]) -> None:
    ours, theirs = outcome(layer, parts, in_one), outcome(layer, parts, step_by_step)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE * float(b.abs().max().clamp_min(1)))


@pytest.mark.parametrize("added", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels-last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_in_training(
    make: Callable[[int], StatisticsNorm], shape: tuple[int, ...], order: torch.memory_format, added: bool
) -> None:
    torch.manual_seed(0)
    x, residual = (torch.randn(shape).contiguous(memory_format=order) for _ in range(2))
    compare(drawn(make(shape[1])), [x, residual if added else None])


@pytest.mark.parametrize("training", [True, False])
def test_a_residual_that_lies_otherwise_or_has_another_type(training: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6)
    layer = drawn(AugNorm2d(8)).train(training)
    compare(layer, [x, torch.randn(4, 8, 6, 6).contiguous(memory_format=torch.channels_last)])
    compare(layer, [x, torch.randn(4, 8, 6, 6, dtype=torch.float64)])
    compare(layer, [x.double(), torch.randn(4, 8, 6, 6)])
    compare(layer, [x, torch.randn(1, 8, 1, 1)])
    compare(layer, [x[:, :, ::2], torch.randn(4, 8, 3, 6)])


def test_a_residual_without_a_relu() -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(4, 8, 6, 6), torch.randn(4, 8, 6, 6)
    layer = drawn(AugNorm2d(8))
    torch.testing.assert_close(layer(x, residual=residual), copy.deepcopy(layer)(x) + residual)


def test_gradients_by_differences_and_of_gradients() -> None:
    torch.manual_seed(0)
    layer = drawn(AugNorm2d(3)).double()
    x, residual = (torch.randn(4, 3, 3, 2, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, r: in_one(layer, x, r), (x, residual))
    single = drawn(AugNorm2d(3))
    x, residual = (part.detach().float().requires_grad_() for part in (x, residual))

    def penalty(call: Callable[..., Tensor]) -> Tensor:
        (slope,) = torch.autograd.grad(
            call(copy.deepcopy(single), x, residual).square().sum(), x, create_graph=True
        )
        return torch.autograd.grad(slope.square().sum(), x)[0]

    torch.testing.assert_close(penalty(in_one), penalty(step_by_step), rtol=1e-3, atol=1e-3)


def test_nan_stays_nan_and_closes_no_other_channel() -> None:
    x = torch.randn(4, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    x[0, 3, 0, 0] = float("nan")
    y = BatchNorm2d(16)(x, relu=True)
    assert y[:, 3].isnan().all()
    assert not y[:, [c for c in range(16) if c != 3]].isnan().any()


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(3), AugNorm2d(3)], ids=["none", "torch", "ours"])
def test_any_norm_of_a_network_takes_a_relu_and_leaves_x(norm: nn.Module) -> None:
    x = torch.randn(4, 3, 5, 5)
    before, other = x.clone(), copy.deepcopy(norm)
    torch.testing.assert_close(normed_relu(norm, x), other(x).relu())
    torch.testing.assert_close(normed_relu(norm.eval(), x, x), F.relu(other.eval()(x) + x))
    assert torch.equal(x, before)
