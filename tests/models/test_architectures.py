"""Each block against its formula, and each network's maps against its paper's table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augserve.errors import ConfigurationError
from augserve.models import build_model, list_models
from augserve.models.blocks import NormedConv, initialize
from augserve.models.densenet import DenseLayer, Transition
from augserve.models.efficientnet import MBConv, StochasticDepth
from augserve.models.mobilenet_v2 import InvertedResidual, relu6
from augserve.models.resnet import ProjectionBlock
from augserve.models.resnet_cifar import ResNetCifar
from augserve.models.vgg import VGG, halve

MAPS = {  # channels and side after each stage, for 32 pixels
    "resnet20": [(16, 32), (32, 16), (64, 8)],
    "resnet38": [(16, 32), (32, 16), (64, 8)],
    "resnet50-cifar": [(16, 32), (32, 16), (64, 8)],
    "resnet18": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "vgg11": [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)],
    "vgg16": [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)],
    "vgg19": [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)],
    "mobilenet-v2": [(16, 32), (24, 32), (32, 16), (64, 8), (96, 8), (160, 4), (320, 4)],
    "densenet121": [(256, 32), (512, 16), (1024, 8), (1024, 4)],
    "efficientnet-b0": [(16, 32), (24, 32), (40, 16), (80, 8), (112, 8), (192, 4), (320, 4)],
}


class Affine(nn.Module):
    """A norm whose place in a formula shows: y = a x + b by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.b = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x + self.b


class Parts:
    """A block's parameters by name, and the two steps that every formula is made of."""

    def __init__(self, block: nn.Module) -> None:
        self.values = dict(block.named_parameters())

    def conv(self, x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = self.values[f"{name}.weight"], self.values.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return self.values[f"{name}.a"] * x + self.values[f"{name}.b"]

    def normed(self, x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        return self.norm(self.conv(x, f"{name}.conv", stride, groups), f"{name}.norm")


def built(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Parts]:
    torch.manual_seed(0)
    block = make().double().eval()
    return block, torch.randn(2, 8, 6, 6, dtype=torch.float64), Parts(block)


@pytest.mark.parametrize(("channels", "stride"), [(8, 1), (8, 2), (12, 1)])
def test_projection_block(channels: int, stride: int) -> None:
    block, x, parts = built(lambda: ProjectionBlock(8, channels, stride, Affine))
    shortcut = x if (channels, stride) == (8, 1) else parts.normed(x, "projection", stride)
    y = parts.norm(parts.conv(x, "conv1", stride), "norm1").relu()
    y = parts.norm(parts.conv(y, "conv2"), "norm2")
    torch.testing.assert_close(block(x), (y + shortcut).relu())


@pytest.mark.parametrize("expansion", [1, 6])
@pytest.mark.parametrize(("channels", "stride"), [(8, 1), (8, 2), (12, 1)])
def test_inverted_residual(channels: int, stride: int, expansion: int) -> None:
    block, x, parts = built(lambda: InvertedResidual(8, channels, stride, expansion, Affine, 3, relu6))
    y = x if expansion == 1 else parts.normed(x, "expand").clamp(0, 6)
    y = parts.normed(y, "depthwise", stride, 8 * expansion).clamp(0, 6)
    y = parts.normed(y, "project")
    torch.testing.assert_close(block(x), y + x if (channels, stride) == (8, 1) else y)


@pytest.mark.parametrize(("channels", "stride"), [(8, 1), (12, 2)])
def test_mbconv_in_eval(channels: int, stride: int) -> None:
    block, x, parts = built(lambda: MBConv(8, channels, stride, 6, Affine, 5, 0.5))
    silu = lambda t: t * torch.sigmoid(t)  # noqa: E731
    y = silu(parts.normed(silu(parts.normed(x, "expand")), "depthwise", stride, 48))
    mean = y.mean((2, 3), keepdim=True)
    assert parts.values["excite.reduce.weight"].shape == (2, 48, 1, 1)
    y = y * torch.sigmoid(parts.conv(silu(parts.conv(mean, "excite.reduce")), "excite.expand"))
    y = parts.normed(y, "project")
    torch.testing.assert_close(block(x), y + x if stride == 1 else y)


@pytest.mark.parametrize("norm", [Affine, lambda _: nn.Identity()])
def test_dense_layer_adds_to_an_input_that_it_leaves(norm: Callable[[int], nn.Module]) -> None:
    block, x, parts = built(lambda: DenseLayer(8, norm))
    before = x.clone()
    result = block(x)
    assert torch.equal(x, before)
    assert torch.equal(result[:, :8], before)
    if norm is Affine:
        y = parts.conv(parts.norm(x, "norm1").relu(), "conv1")
        torch.testing.assert_close(result[:, 8:], parts.conv(parts.norm(y, "norm2").relu(), "conv2"))
    assert result.shape == (2, 40, 6, 6)


def test_transition_halves_channels_and_sides() -> None:
    block, x, parts = built(lambda: Transition(8, Affine))
    y = parts.conv(parts.norm(x, "norm").relu(), "conv")
    torch.testing.assert_close(block(x), y.unflatten(3, (3, 2)).unflatten(2, (3, 2)).mean((3, 5)))
    assert block(x[..., :3, :4]).shape == (2, 4, 3, 2)  # a side of 3 stays


@pytest.mark.parametrize(
    ("side", "least", "after"), [(32, 2, 16), (7, 2, 4), (3, 2, 2), (2, 2, 2), (2, 1, 1), (1, 1, 1), (1, 2, 1)]
)
def test_vgg_pools_round_up_and_end_at_the_least(side: int, least: int, after: int) -> None:
    x = torch.arange(float(side * side)).view(1, 1, side, side)
    y = halve(x, least)
    assert y.shape == (1, 1, after, after)
    assert y.max() == x.max()  # which is the last pixel: a map of an odd side loses none


@pytest.mark.parametrize("side", [32, 64])
def test_vgg_is_its_plain_form_from_32_pixels_up(side: int) -> None:
    torch.manual_seed(0)
    model = build_model("vgg11").eval()
    plain = nn.Sequential()
    for stage in model.stages:
        plain.extend([*stage, nn.MaxPool2d(2)])
    plain.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head])
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("name", list_models())
def test_maps_are_those_of_the_table(name: str) -> None:
    model = build_model(name).eval()
    seen: list[tuple[int, ...]] = []
    for stage in model.blocks if name == "densenet121" else model.stages:
        stage.register_forward_hook(lambda _, inputs, y: seen.append(tuple(y.shape[1:])))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert seen == [(channels, side, side) for channels, side in MAPS[name]]


@pytest.mark.parametrize("name", list_models())
def test_no_norm_in_training_sees_a_single_position(name: str) -> None:
    """Where a channel has one value a row, instance norm has nothing to work with."""
    model = build_model(name, norm="instance")
    for size in (16, 28, 32):
        model(torch.randn(1, 3, size, size))


def test_stochastic_depth_drops_whole_rows_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, x = StochasticDepth(0.25), torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).repeat(4000, 1, 1, 1)
    factor = layer(x) / x
    assert torch.equal(factor[:, 0], factor[:, 1])
    dropped = factor[:, 0, 0, 0] == 0
    torch.testing.assert_close(factor[~dropped], torch.full_like(factor[~dropped], 4 / 3))
    assert abs(dropped.double().mean().item() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert layer.eval()(x) is x


def test_efficientnets_rates_grow_linearly() -> None:
    rates = [m.rate for m in build_model("efficientnet-b0").modules() if isinstance(m, StochasticDepth)]
    torch.testing.assert_close(rates, [0.2 * n / 16 for n in range(16)])


def test_efficientnet_is_random_in_training_alone() -> None:
    torch.manual_seed(0)
    model = build_model("efficientnet-b0", norm="group")
    x = torch.randn(1, 3, 16, 16).expand(16, -1, -1, -1)
    with torch.no_grad():
        assert len(set(model(x)[:, 0].tolist())) > 8
        logits = model.eval()(x)
    torch.testing.assert_close(logits, logits[:1].expand_as(logits))


@pytest.mark.parametrize("fan", ["in", "out"])
def test_first_weights_have_the_variance_of_their_fan(fan: str) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(20, 60, 3), NormedConv(600, 600, 3, nn.Identity, groups=600), nn.Linear(9, 9))
    plain, deep, linear = layers[0], layers[1].conv, layers[2].weight.clone()
    initialize(layers, fan)
    fans = (20 * 9 if fan == "in" else 60 * 9, 9)
    for layer, connections in zip((plain, deep), fans, strict=True):
        assert layer.weight.std().item() == pytest.approx((2 / connections) ** 0.5, rel=0.05)
        assert layer.weight.mean().abs() < 0.05 * layer.weight.std()
    assert not plain.bias.any()
    assert torch.equal(layers[2].weight, linear)


def test_depths_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"expected a depth of 6n \+ 2 .*; got 21"):
        ResNetCifar(21, 10, 3, nn.BatchNorm2d)
    with pytest.raises(ConfigurationError, match="expected a depth of 11, 16, 19; got 13"):
        VGG(13, 10, 3, nn.BatchNorm2d)
