"""ConvNorm2d as an nn.Conv2d: states, sizes, types, layouts, compilers and refusals."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from augserve.errors import ConfigurationError, InputError
from augserve.norms.conv_norm import ConvNorm2d, spectral_multiplier
from tests.norms.conv_oracle import EXACT, HALF, NORMS, build, dense, random


def test_weights_are_drawn_as_those_of_conv2d_and_r_is_the_identity() -> None:
    torch.manual_seed(3)
    ours = ConvNorm2d(4, 6, (3, 2), padding=1)
    torch.manual_seed(3)
    theirs = nn.Conv2d(4, 6, (3, 2), padding=1)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    plain = ConvNorm2d(4, 6, (3, 2), padding=1, affine=False)
    plain.load_state_dict(theirs.state_dict())
    x = random(2, 4, 6, 5, dtype=torch.float32)
    assert torch.equal(ours(x), plain(x))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.fill_(5)
    ours.reset_parameters()
    plain.weight, plain.bias = ours.weight, ours.bias
    assert torch.equal(ours(x), plain(x))


def test_state_of_conv2d_loads_strictly_and_leaves_r_as_it_is() -> None:
    layer, conv = build(3, padding=1), nn.Conv2d(4, 6, 3, padding=1).double()
    assert layer.affine_weight is not None
    r = layer.affine_weight.detach().clone()
    layer.load_state_dict(conv.state_dict())
    assert torch.equal(layer.weight, conv.weight)
    assert torch.equal(layer.affine_weight, r)
    network = nn.Sequential(nn.Sequential(ConvNorm2d(4, 6, 3)), nn.BatchNorm2d(6))
    network.load_state_dict(nn.Sequential(nn.Sequential(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6)).state_dict())


def test_half_a_state_is_reported() -> None:
    layer = build(3)
    state = layer.state_dict()
    for missing in (["affine_weight"], ["affine_bias"], ["weight"], ["weight", "affine_weight", "affine_bias"]):
        rest = {key: value for key, value in state.items() if key not in missing}
        assert layer.load_state_dict(rest, strict=False).missing_keys == missing
        with pytest.raises(RuntimeError, match="Missing key"):
            layer.load_state_dict(rest)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        build(3, affine=False).load_state_dict(state)


def test_state_without_r_loads_strictly_into_conv2d() -> None:
    layer = build(3, affine=False)
    conv = nn.Conv2d(4, 6, 3).double()
    conv.load_state_dict(layer.state_dict())
    assert torch.equal(conv.weight, layer.weight)


@pytest.mark.parametrize("copied", ["state", "deepcopy", "pickle", "saved"])
def test_copies_compute_the_same(copied: str) -> None:
    layer, x = build((3, 2), padding=1, stride=2, affine_position="before_crop"), random(2, 4, 6, 5)
    if copied == "state":
        other = build((3, 2), padding=1, stride=2, affine_position="before_crop")
        other.reset_parameters()
        other.load_state_dict(layer.state_dict())
    elif copied == "deepcopy":
        other = copy.deepcopy(layer)
    elif copied == "pickle":
        other = pickle.loads(pickle.dumps(layer))  # noqa: S301
    else:
        torch.save(layer.state_dict(), stream := io.BytesIO())
        stream.seek(0)
        other = build((3, 2), padding=1, stride=2, affine_position="before_crop")
        other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(other(x), layer(x))
    assert repr(other) == repr(layer)


def test_repr_shows_the_options_of_both() -> None:
    layer = ConvNorm2d(4, 6, 3, padding="same", groups=2, bias=False, affine_position="before_crop", eps=1e-6)
    assert repr(layer) == (
        "ConvNorm2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=same, groups=2, bias=False, eps=1e-06, "
        "affine=True, affine_position=before_crop, bias_position=after)"
    )


def test_sizes_may_change_between_calls() -> None:
    layer = build(3, padding=1, stride=2)
    for size in ((6, 5), (9, 4), (2, 2), (6, 5)):
        x = random(1, 4, *size)
        np.testing.assert_allclose(layer(x).detach().numpy(), dense(layer, x), rtol=0, atol=EXACT)


@pytest.mark.parametrize("norm", ["published", "paper", "plain"])
@pytest.mark.parametrize("options", [{}, {"padding": 1, "padding_mode": "circular"}, {"stride": 2}], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_rows_stand_alone_and_may_be_none(kernel_size: int, options: dict[str, Any], norm: str) -> None:
    layer, x = build(kernel_size, **options, **NORMS[norm]), random(3, 4, 6, 5)
    y = layer(x)
    torch.testing.assert_close(layer(x[1]), y[1], rtol=0, atol=EXACT)
    empty = layer(x[:0].requires_grad_())
    assert empty.shape == (0, *y.shape[1:])
    empty.sum().backward()


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding_mode": "circular"}], ids=str)
@pytest.mark.parametrize("affine_position", ["after_crop", "before_crop", None])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_memory_format_is_that_of_conv2d(
    kernel_size: int, affine_position: str | None, options: dict[str, Any]
) -> None:
    affine = {"affine_position": affine_position} if affine_position else {"affine": False}
    layer = build(kernel_size, padding=1, **options, **affine)
    conv = nn.Conv2d(4, 6, kernel_size, padding=1, **options).double()
    x = random(2, 4, 6, 5)
    last = x.to(memory_format=torch.channels_last)
    assert layer(x).stride() == conv(x).stride()
    if layer.padding_mode == "zeros":  # nn.Conv2d forgets the format where it pads by itself
        assert layer(last).stride() == conv(last).stride()
    assert layer(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(last), layer(x), rtol=0, atol=EXACT)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("norm", ["published", "paper", "plain"])
def test_half_precision_is_close_to_float32(norm: str, kernel_size: int, dtype: torch.dtype) -> None:
    half = build(kernel_size, padding=1, stride=2, **NORMS[norm]).to(dtype)
    single, x = copy.deepcopy(half).float(), random(2, 4, 9, 8).to(dtype)
    y = half(x)
    assert y.dtype == dtype
    assert half.multiplier(9, 8).dtype == torch.float32
    expected = single(x.float())
    scale = expected.abs().max().item()
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=HALF[dtype] * scale)
    y.float().square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(half.parameters(), single.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=0, atol=2 * HALF[dtype] * scale)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("norm", ["published", "paper", "plain"])
def test_autocast_gives_the_dtype_of_conv2d(norm: str, kernel_size: int) -> None:
    layer, x = build(kernel_size, padding=1, dtype=torch.float32, **NORMS[norm]), random(2, 4, 6, 5).float()
    expected, conv = layer(x), nn.Conv2d(4, 6, kernel_size, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == conv(x).dtype == torch.bfloat16
        assert layer.multiplier(6, 5).dtype == torch.float32
    scale = expected.abs().max().item()
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=HALF[torch.bfloat16] * scale)
    y.float().sum().backward()


def test_a_parametrized_weight_is_computed_once() -> None:
    class Counted(nn.Module):
        calls = 0

        def forward(self, weight: Tensor) -> Tensor:
            self.calls += 1
            return weight * self.calls

    layer, counted = build(3), Counted()
    nn.utils.parametrize.register_parametrization(layer, "weight", counted)
    before = counted.calls
    layer(random(1, 4, 6, 5))
    assert counted.calls == before + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_parameters_have_the_device_and_dtype_asked_for(dtype: torch.dtype) -> None:
    layer = ConvNorm2d(4, 6, 3, device="meta", dtype=dtype)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert layer(torch.empty(2, 4, 6, 5, device="meta", dtype=dtype)).shape == (2, 6, 4, 3)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding_mode": "circular"}], ids=str)
def test_compiled_exported_and_plain_are_equal(options: dict[str, Any]) -> None:
    layer, x = build(3, padding=1, affine_position="before_crop", **options), random(2, 4, 6, 5)
    expected = layer(x)
    expected.sum().backward()
    assert layer.weight.grad is not None
    gradient = layer.weight.grad.clone()
    layer.zero_grad()
    torch._dynamo.reset()
    y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=EXACT)
    y.sum().backward()
    torch.testing.assert_close(layer.weight.grad, gradient, rtol=0, atol=EXACT)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},), strict=False)
    more = random(5, 4, 6, 5, seed=2)
    torch.testing.assert_close(exported.module()(more), layer(more), rtol=0, atol=EXACT)


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 3, "groups": 2}, "in_channels must be a positive multiple of groups=2; got 3"),
        ({"out_channels": 0}, "out_channels must be a positive multiple"),
        ({"groups": 0}, "groups=0"),
        ({"kernel_size": 0}, "kernel_size must be one or two whole numbers from 1 up; got 0"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size must be"),
        ({"stride": 1.5}, "stride must be"),
        ({"dilation": (1, 0)}, "dilation must be"),
        ({"padding": -1}, "padding must be one or two whole numbers from 0 up"),
        ({"padding": "full"}, "unknown padding 'full'; choose one of: .*same, .*valid"),
        ({"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
        ({"padding_mode": "wrap"}, "unknown padding_mode 'wrap'; choose one of: circular"),
        ({"affine_position": "after"}, "unknown affine_position 'after'; choose one of: after_crop, before_crop"),
        ({"bias_position": "middle"}, "unknown bias_position 'middle'; choose one of: after, before"),
        ({"eps": 0.0}, "eps must lie in"),
        ({"eps": math.nan}, "eps must lie in"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ConvNorm2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **options})


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 3, 6, 5), {}),
        ((6, 5), {}),
        ((1, 2, 4, 6, 5), {}),
        ((2, 4, 2, 5), {}),
        ((2, 4, 6, 2), {"padding_mode": "circular"}),
        ((2, 4, 6, 4), {"dilation": (1, 3), "padding": 1}),
        ((2, 4, 3, 5), {"padding": 3, "padding_mode": "reflect"}),
        ((2, 4, 0, 5), {"padding": 1}),
        ((2, 4, 0, 5), {"padding": 4}),
    ],
)
def test_inputs_that_conv2d_refuses_are_refused(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        nn.Conv2d(4, 6, 3, **options)(torch.zeros(shape))
    layer = ConvNorm2d(4, 6, 3, **options)
    with pytest.raises(InputError, match="expected"):
        layer(torch.zeros(shape))
    if len(shape) == 4 and shape[1] == 4:
        with pytest.raises(InputError, match="kernel"):
            layer.multiplier(*shape[2:])


def test_multiplier_wraps_a_kernel_around_a_small_torus() -> None:
    kernel = random(3, 2, 5, 4)
    folded = torch.zeros(3, 2, 2, 3, dtype=torch.float64)
    for row, column in np.ndindex(5, 4):
        folded[:, :, row % 2, column % 3] += kernel[:, :, row, column]
    expected = torch.fft.rfft2(folded).abs().square().sum(1).rsqrt()
    torch.testing.assert_close(spectral_multiplier(kernel, (2, 3), (1, 1), 1e-8), expected, rtol=EXACT, atol=0)
