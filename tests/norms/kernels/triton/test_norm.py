"""Forward and backward on the device, against the layers in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from augserve.norms import RobustNorm1d, RobustNorm2d, RobustNorm3d
from augserve.norms.function import make_spec
from augserve.norms.kernels.reference import normalize
from augserve.norms.reduction import along_channels
from tests.norms.kernels.triton.cases import DEVICES, WARNINGS, norm, split_everything

pytestmark = WARNINGS
RTOL, STEPS, EPS = 1e-5, 32, 1e-5
KINDS = {
    "root": (0, 1.5),
    "mean": (0, 2.0),
    "below": (0, 1.25),
    "above": (0, 3.0),
    "steep": (0, 60.0),  # weights of most values vanish: differences are taken of the largest one
    "robust": (1, 0.2),
    "range": (2, 0.2),
}
# The bracket is 1e-5 standard deviations wide; dx of values next to mu follows mu's own rounding.
BAR = {"y": 1e-5, "dx": 5e-4, "d_weight": 1e-5, "d_bias": 2e-6, "d_exponent": 2e-3}


class Run:
    """One forward and backward on the device, and the same by the layers in float64."""

    def __init__(
        self, x: Tensor, kind: int, exponent: float | Tensor, device: str, limit: int | None = None, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        channels = x.shape[1]
        weight, bias = (torch.randn(channels, generator=generator) for _ in range(2))
        dy = torch.randn(x.shape, generator=generator).to(x.dtype)
        exponents = exponent.to(device) if isinstance(exponent, Tensor) else None
        rest = exponents, kind, 0.0 if isinstance(exponent, Tensor) else exponent, EPS
        there = x.to(device)
        self.y, *self.statistics = norm.forward(
            there, weight.to(device), bias.to(device), exponents, None, *rest[1:], RTOL, STEPS, limit=limit
        )
        self.dx, *self.parameters = norm.backward(
            dy.to(device), there, weight.to(device), *self.statistics, *rest, limit=limit
        )
        self.expected = reference(x.double(), weight.double(), bias.double(), kind, exponent, dy.double())

    def check(self, **bars: float) -> None:
        found = dict(zip(BAR, (self.y, self.dx, *self.parameters), strict=True))
        for name, expected in self.expected.items():
            bar = {**BAR, **bars}[name] * max(float(expected.abs().max()), 1e-3)
            error = float((found[name].cpu().double() - expected).abs().max())
            assert error <= bar, (name, error, bar)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, kind: int, exponent: float | Tensor, dy: Tensor
) -> dict[str, Tensor]:
    leaves = {"dx": x, "d_weight": weight, "d_bias": bias}
    if isinstance(exponent, Tensor):
        leaves["d_exponent"] = exponent.double()
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    x = leaves["dx"]
    if kind == 0:
        spec = make_spec(0, 1.5 if isinstance(exponent, Tensor) else exponent, EPS)
        y = normalize(x, leaves["d_weight"], leaves["d_bias"], leaves.get("d_exponent"), spec)[0]
    else:
        assert isinstance(exponent, float)
        layers = {2: RobustNorm1d, 3: RobustNorm1d, 4: RobustNorm2d, 5: RobustNorm3d}
        layer = layers[x.ndim](x.shape[1], exponent, EPS, affine=False)
        y = layer(x) * along_channels(leaves["d_weight"], x) + along_channels(leaves["d_bias"], x)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


many_splits = pytest.fixture(split_everything)


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", KINDS)
def test_small_sets(name: str, device: str) -> None:
    Run(data(4, 2, 5, 7), *KINDS[name], device).check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", KINDS)
def test_large_sets(name: str, device: str, many_splits: None) -> None:
    Run(data(4, 2, 4, 3), *KINDS[name], device, 1).check()


@pytest.mark.parametrize("device", DEVICES)
def test_large_sets_channels_last(device: str, many_splits: None) -> None:
    Run(data(4, 9, 2, 5).contiguous(memory_format=torch.channels_last), 0, 1.5, device, 1).check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", [None, 1], ids=["small", "large"])
def test_an_exponent_for_each_channel(limit: int | None, device: str, many_splits: None) -> None:
    Run(data(4, 3, 3, 5), 0, torch.tensor([1.1, 2.0, 60.0]), device, limit).check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["root", "robust"])
def test_channels_last_in_and_out(name: str, device: str) -> None:
    x = data(3, 11, 4, 5).contiguous(memory_format=torch.channels_last)
    run = Run(x, *KINDS[name], device)
    run.check()
    assert run.y.stride() == run.dx.stride() == x.stride()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(40, 19), (2, 3), (3, 1), (6, 2, 8), (2, 1, 4, 4), (2, 2, 2, 3, 2)], ids=str)
def test_every_rank(shape: tuple[int, ...], device: str) -> None:
    Run(data(*shape, seed=3), 0, 1.5, device).check()
    Run(data(*shape, seed=3), 1, 0.2, device).check()


@pytest.mark.parametrize("device", DEVICES)
def test_other_memory_orders(device: str) -> None:
    x = data(5, 4, 3, 6).transpose(2, 3)[:, 1:]
    Run(x, 0, 1.5, device).check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("limit", [None, 1], ids=["small", "large"])
def test_half_precision_is_rounding_only(
    limit: int | None, dtype: torch.dtype, device: str, many_splits: None
) -> None:
    x = data(3, 1, 3, 6).to(dtype)
    rounding = float(torch.finfo(dtype).eps)
    for kind in ("root", "range"):
        run = Run(x, *KINDS[kind], device, limit)
        assert run.y.dtype == run.dx.dtype == dtype
        assert all(s.dtype == torch.float32 for s in (*run.statistics, *run.parameters))
        run.check(y=rounding, dx=rounding)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", [None, 1], ids=["small", "large"])
@pytest.mark.parametrize("name", ["root", "range"])
def test_hard_channels_keep_to_themselves(name: str, limit: int | None, device: str) -> None:
    """Ties, one outlier, a far mean, a constant, a NaN and an inf, a channel each, and a plain one."""
    x = data(4, 7, 5, 5)
    x[:, 0] = x[:, 0].clamp(0, 2)
    x[0, 1, 0, 0] = 1e4
    x[:, 2] += 1e4
    x[:, 3] = 3.7
    x[1, 4, 2, 2] = float("nan")
    x[1, 5, 2, 2] = float("inf")
    run = Run(x, *KINDS[name], device, limit)
    bad = torch.tensor([False, False, False, False, True, True, False])
    for part in (run.y, run.dx):
        assert torch.equal(part.isnan().any(dim=(0, 2, 3)).cpu(), bad)
        assert torch.equal(part.isnan().all(dim=(0, 2, 3)).cpu(), bad)
    keep = [0, 1, 3, 6]
    constant = slice(None) if name in ("robust", "range") else slice(0, 2)
    for channel in keep[constant] + [6]:
        for found, key in ((run.y, "y"), (run.dx, "dx")):
            expected = run.expected[key][:, channel]
            bar = (1e-5 if key == "y" else 2e-3) * float(expected.abs().max()) + 1e-6
            assert float((found[:, channel].cpu() - expected).abs().max()) <= bar, (channel, key)
    # A mean of 1e4 leaves mu half a unit in its last place, 5e-4 here.
    assert float((run.y[:, 2].cpu() - run.expected["y"][:, 2]).abs().max()) <= 1e-3
    assert float((run.y[:, 3].cpu() - run.expected["y"][:, 3]).abs().max()) <= 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_statistics_are_what_the_interface_says(device: str) -> None:
    x = data(4, 1, 5, 5)
    flat = x.double().movedim(1, 0).flatten(1)
    for limit in (None, 1):
        center, spread, first, second = Run(x, 0, 1.5, device, limit).statistics
        mu = center.cpu().double()
        assert torch.allclose(spread.cpu().double(), (flat - mu[:, None]).square().mean(1), rtol=1e-5)
        assert torch.allclose(first.cpu().double(), flat.mean(1) - mu, atol=1e-6)
        assert not second.any()
        center, spread, first, second = (s.cpu() for s in Run(x, 1, 0.2, device, limit).statistics)
        assert torch.allclose(center.double(), flat.mean(1), atol=1e-6)
        assert torch.equal(first, flat.amin(1).float())
        assert torch.equal(second, flat.amax(1).float())
        assert torch.equal(spread, second - first)


@pytest.mark.parametrize("device", DEVICES)
def test_without_parameters_and_without_rows(device: str) -> None:
    x = data(4, 3, 5).to(device)
    y, *statistics = norm.forward(x, None, None, None, None, 0, 1.5, EPS, RTOL, STEPS)
    one, zero = torch.ones(3, device=device), torch.zeros(3, device=device)
    assert torch.equal(y, norm.forward(x, one, zero, None, None, 0, 1.5, EPS, RTOL, STEPS)[0])
    plain = norm.backward(y, x, None, *statistics, None, 0, 1.5, EPS)
    assert torch.equal(plain[0], norm.backward(y, x, one, *statistics, None, 0, 1.5, EPS)[0])
    assert not plain[3].any()
    empty = norm.forward(x[:0], None, None, None, None, 0, 1.5, EPS, RTOL, STEPS)
    assert empty[0].shape == (0, 3, 5)
    assert norm.backward(x[:0], x[:0], None, *empty[1:], None, 0, 1.5, EPS)[0].shape == (0, 3, 5)
