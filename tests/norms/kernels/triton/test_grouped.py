"""Groups of rows, each with its own blend of statistics: against the formula, and apart to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from augserve.norms.median.problem import reference
from tests.norms.kernels.triton.cases import DEVICES, WARNINGS, norm, split_everything

pytestmark = WARNINGS
RTOL, STEPS, EPS = 1e-5, 32, 1e-5
KINDS = {"root": (0, 1.5), "mean": (0, 2.0), "robust": (1, 0.2), "range": (2, 0.2)}
GROUP = torch.tensor([2, 0, 1, 2, 2, 0, 3, 1, 2, 3])
LAMBDA = torch.tensor([0.0, 1.0, 0.25, 0.0])  # own statistics, tracked, blended, own

many_splits = pytest.fixture(split_everything)


class Layer:
    """Parameters and running statistics of a layer on a device."""

    def __init__(self, channels: int, name: str, device: str) -> None:
        g = torch.Generator().manual_seed(1)
        self.kind, self.exponent = KINDS[name]
        self.device = device
        self.weight, self.bias, self.center = (torch.randn(channels, generator=g) for _ in range(3))
        self.spread = torch.rand(channels, generator=g) + 0.5
        self.exponents: Tensor | None = None

    def __call__(self, x: Tensor, group: Tensor, tracked: Tensor, **options: object) -> Tensor:
        affine = (self.weight, self.bias, self.center, self.spread)
        there = [t.to(self.device) for t in (x, *affine, group, tracked[group])]
        exponents = None if self.exponents is None else self.exponents.to(self.device)
        rest = (exponents, self.kind, self.exponent, EPS, RTOL, STEPS)
        y: Tensor = norm.grouped(*there, len(tracked), *rest, **options)
        assert y.stride() == x.stride()
        return y.cpu()

    def expected(self, x: Tensor, group: Tensor, tracked: Tensor) -> Tensor:
        """The formula in float64, group by group and channel by channel."""
        y = torch.empty_like(x, dtype=torch.float64)
        for g, weight in enumerate(tracked.double()):
            for c in range(x.shape[1]):
                values = x[group == g, c].double()
                center, spread = self._statistics(values, c)
                if weight == 1:
                    center, spread = self.center[c].double(), self.spread[c].double()
                else:
                    center = weight * self.center[c].double() + (1 - weight) * center
                    spread = weight * self.spread[c].double() + (1 - weight) * spread
                power = self.exponent if self.kind == 2 else 1.0
                divisor = torch.sqrt(spread + EPS) if self.kind == 0 else spread**power + EPS
                y[group == g, c] = (values - center) / divisor * self.weight[c] + self.bias[c]
        return y

    def _statistics(self, values: Tensor, channel: int) -> tuple[Tensor, Tensor]:
        if self.kind:
            extent = values.amax() - values.amin()
            return values.mean(), extent if self.kind == 2 else extent**self.exponent
        phi = self.exponent if self.exponents is None else float(self.exponents[channel])
        center = reference(values.reshape(1, -1), phi)[0]
        return center, (values - center).square().mean()


def data(rows: int, channels: int = 3, size: tuple[int, ...] = (3, 4), seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, *size, generator=g) * 2 + 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", KINDS)
def test_modes_may_be_mixed(name: str, device: str) -> None:
    x = data(10, 2)
    layer = Layer(2, name, device)
    torch.testing.assert_close(
        layer(x, GROUP, LAMBDA).double(), layer.expected(x, GROUP, LAMBDA), rtol=1e-5, atol=2e-5
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["root", "robust"])
def test_small_and_large_groups_together(name: str, device: str, many_splits: None) -> None:
    x = data(10, 2)
    layer = Layer(2, name, device)
    y = layer(x, GROUP, LAMBDA, limit=30)  # the groups have 24 and 48 values
    torch.testing.assert_close(y.double(), layer.expected(x, GROUP, LAMBDA), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", ["nodes", "channels last"])
def test_where_channels_are_innermost(shape: str, device: str) -> None:
    x = data(10, 5, () if shape == "nodes" else (3, 4))
    if shape == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    layer = Layer(5, "root", device)
    for limit in (None, 1):
        y = layer(x, GROUP, LAMBDA, limit=limit)
        torch.testing.assert_close(y.double(), layer.expected(x, GROUP, LAMBDA), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_an_exponent_for_each_channel(device: str) -> None:
    x = data(10)
    layer = Layer(3, "root", device)
    layer.exponents = torch.tensor([1.25, 2.0, 3.0])
    torch.testing.assert_close(
        layer(x, GROUP, LAMBDA).double(), layer.expected(x, GROUP, LAMBDA), rtol=1e-5, atol=2e-5
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", [None, 30], ids=["small", "either"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_a_group_alone_has_the_same_bits(last: bool, limit: int | None, device: str, many_splits: None) -> None:
    channels = 2 if last else 1
    x = data(10, channels)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    layer = Layer(channels, "root", device)
    together = layer(x, GROUP, LAMBDA, limit=limit)
    other = data(10, channels, seed=5)
    for g in (2, 3):  # blended, and of its own statistics alone; of 48 and of 24 values
        mine = torch.eq(GROUP, g)
        alone = x[mine].contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        zeros = torch.zeros(int(mine.sum()), dtype=torch.int64)
        assert torch.equal(layer(alone, zeros, LAMBDA[g : g + 1], limit=limit), together[mine])
    mine = GROUP == 2
    other[mine] = x[mine]
    other = other.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert torch.equal(layer(other, GROUP, LAMBDA, limit=limit)[mine], together[mine])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["root", "range"])
def test_nan_and_inf_stay_in_their_group_and_channel(name: str, device: str, many_splits: None) -> None:
    x = data(10, 3, (2, 2))
    layer = Layer(3, name, device)
    clean = layer(x, GROUP, LAMBDA)
    x[0, 0, 1, 1] = math.nan  # group 2, blended
    x[1, 1, 1, 1] = math.inf  # group 0, own
    x[2, 2, 1, 1] = math.nan  # group 1, tracked: this value only
    for limit in (None, 1) if name == "root" else (None,):
        y = layer(x, GROUP, LAMBDA, limit=limit)
        wrong = torch.zeros_like(y, dtype=torch.bool)
        wrong[GROUP == 2, 0] = True
        wrong[GROUP == 0, 1] = True
        wrong[2, 2, 1, 1] = True
        assert torch.equal(y.isnan(), wrong)
        torch.testing.assert_close(y[~wrong], clean[~wrong], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_tracked_is_the_plain_formula_to_the_bit(device: str) -> None:
    """What else is in the group does not matter."""
    x = data(6, 1)
    layer = Layer(1, "root", device)
    tracked = torch.ones(2)
    one = layer(x, torch.tensor([0, 0, 0, 1, 1, 1]), tracked)
    other = layer(x, torch.tensor([0, 1, 0, 1, 0, 1]), tracked)
    assert torch.equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
def test_what_the_host_knows_changes_no_bit(device: str, many_splits: None) -> None:
    from augserve.norms.kernels.triton.plan import group_order

    x = data(10, 1)
    layer = Layer(1, "root", device)
    prepared = group_order(GROUP.to(device), len(LAMBDA))
    assert prepared[0].cpu().tolist() == [1, 5, 2, 7, 0, 3, 4, 8, 6, 9]
    assert prepared[1].cpu().tolist() == [0, 2, 4, 8, 10]
    for limit in (None, 30):
        y = layer(x, GROUP, LAMBDA, limit=limit)
        assert torch.equal(layer(x, GROUP, LAMBDA, limit=limit, prepared=prepared, largest=4), y)
