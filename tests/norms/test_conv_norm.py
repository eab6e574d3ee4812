"""ConvNorm2d against the dense operator, its properties, its gradient, and the published numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from augserve.norms import conv_norm
from augserve.norms.conv_norm import ConvNorm2d
from tests.norms.conv_oracle import (
    CONVOLUTIONS,
    EXACT,
    NORMS,
    SINGLE,
    TIGHT,
    build,
    dense,
    extent_of,
    multiplier_of,
    random,
    sides_of,
)
from tests.shared import shared_folder
from tests.tolerances import GOLDEN


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_output_is_that_of_the_dense_operator(convolution: str, norm: str) -> None:
    kernel_size, options = CONVOLUTIONS[convolution]
    layer = build(kernel_size, **options, **NORMS[norm])
    x = random(2, 4, 6, 5)
    np.testing.assert_allclose(layer(x).detach().numpy(), dense(layer, x), rtol=0, atol=EXACT)


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_multiplier_is_that_of_the_documented_size(convolution: str) -> None:
    kernel_size, options = CONVOLUTIONS[convolution]
    layer, size = build(kernel_size, **options), [6, 5]
    if layer.padding_mode != "circular":
        for d, (begin, end) in enumerate(sides_of(layer)):
            e, zeros = extent_of(layer)[d], layer.padding_mode == "zeros"
            size[d] += 2 * max(e - 1, begin) - e + 1 if zeros else begin + end + e - 1
    v = layer.multiplier(6, 5)
    assert not v.requires_grad
    np.testing.assert_allclose(v.numpy(), multiplier_of(layer, size)[..., : size[1] // 2 + 1], rtol=EXACT)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # nn.Conv2d's
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_size_of_the_output_is_that_of_conv2d(convolution: str) -> None:
    kernel_size, options = CONVOLUTIONS[convolution]
    layer = build(kernel_size, **options)
    for size in ((6, 5), (9, 12)):
        x = random(1, 4, *size)
        if layer.padding_mode == "circular":  # nn.Conv2d goes around a torus once at most
            sides = [p for pair in reversed(sides_of(layer)) for p in pair]
            expected = nn.Conv2d(4, 6, kernel_size, layer.stride, 0, layer.dilation, layer.groups).double()
            x_expected = torch.zeros(1, 4, size[0] + sides[2] + sides[3], size[1] + sides[0] + sides[1]).double()
            assert layer(x).shape == expected(x_expected).shape
        else:
            assert layer(x).shape == nn.Conv2d(4, 6, kernel_size, **options).double()(x).shape


# What ConvNorm is for.


def operator(layer: ConvNorm2d, height: int, width: int) -> Tensor:
    """Return the matrices (Co, outputs, Ci H W) of a linear layer, one for each output channel."""
    basis = torch.eye(layer.in_channels * height * width, dtype=layer.weight.dtype)
    y = layer(basis.view(-1, layer.in_channels, height, width)).detach()
    return y.flatten(2).permute(1, 2, 0)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"dilation": (2, 1)}], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 2, 3, (1, 4), 5])
def test_channels_are_tight_frames_on_a_torus(kernel_size: int | tuple[int, int], options: dict[str, Any]) -> None:
    layer = build(kernel_size, padding="same", padding_mode="circular", affine=False, bias=False, **options)
    for a in operator(layer, 8, 7):
        torch.testing.assert_close(a @ a.T, torch.eye(56, dtype=torch.float64), rtol=0, atol=TIGHT)
        assert torch.linalg.cond(a).item() == pytest.approx(1, abs=TIGHT)


@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"padding": (4, 2)}, {"stride": 2, "padding": 1}], ids=str)
def test_norm_of_a_channel_is_at_most_1(options: dict[str, Any]) -> None:
    channels = operator(build(3, affine=False, bias=False, **options), 6, 5)
    assert torch.linalg.matrix_norm(channels, 2).max() <= 1 + TIGHT
    assert torch.linalg.matrix_norm(channels.flatten(0, 1), 2) <= math.sqrt(6)


def test_norm_of_a_layer_may_rise_as_the_reference_says() -> None:
    torch.manual_seed(0)
    layer = ConvNorm2d(3, 16, 3, stride=2, padding=1, bias=False, affine=False, dtype=torch.float64)
    plain = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    basis = torch.eye(3 * 16 * 16, dtype=torch.float64).view(-1, 3, 16, 16)
    norms = [torch.linalg.matrix_norm(m(basis).detach().flatten(1), 2).item() for m in (plain, layer)]
    assert norms == pytest.approx([1.29, 2.14], abs=0.01)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_output_does_not_depend_on_the_scale_of_the_weight(
    dtype: torch.dtype, scale: float, kernel_size: int
) -> None:
    layer, x = build(kernel_size, padding=1, dtype=dtype), random(2, 4, 6, 5, dtype=dtype)
    expected = layer(x)
    with torch.no_grad():
        layer.weight.mul_(scale)
    tolerance = SINGLE if dtype == torch.float32 else EXACT
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=tolerance)


def test_a_channel_with_a_zero_kernel_gives_its_bias_and_finite_gradients() -> None:
    layer, x = build(3, padding=1), random(2, 4, 6, 5).requires_grad_()
    expected = layer(x).detach()
    with torch.no_grad():
        layer.weight[2] = 0
    y = layer(x)
    assert torch.equal(layer.multiplier(6, 5)[2], torch.ones(8, 4, dtype=torch.float64))
    assert layer.affine_bias is not None
    assert layer.bias is not None
    torch.testing.assert_close(y[:, 2], (layer.affine_bias + layer.bias)[2].expand(2, 6, 5))
    torch.testing.assert_close(y[:, [0, 1, 3, 4, 5]], expected[:, [0, 1, 3, 4, 5]])
    y.square().sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (x, *layer.parameters()))


def test_a_frequency_that_the_kernel_lacks_is_held_at_eps() -> None:
    layer = ConvNorm2d(1, 1, (1, 2), padding_mode="circular", affine=False, eps=1e-3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[[5.0, -5.0]]]]))  # nothing at frequency 0, most at the highest, 10
    v = layer.multiplier(2, 4)
    torch.testing.assert_close(v[0, :, 0], torch.tensor([100.0, 100.0], dtype=torch.float64))
    torch.testing.assert_close(v[0, :, 2], torch.tensor([0.1, 0.1], dtype=torch.float64))
    layer.eps = 1e-320  # less than float32 holds
    assert layer.float().multiplier(2, 4).isfinite().all()


def test_nan_stays_in_its_channel() -> None:
    layer, x = build(3, padding=1, dtype=torch.float32), random(2, 4, 6, 5, dtype=torch.float32)
    with torch.no_grad():
        layer.weight[1, 0, 0, 0] = math.nan
    finite = layer(x).isfinite().all(dim=3).all(dim=2).all(dim=0)
    assert finite.tolist() == [True, False, True, True, True, True]


def test_bias_before_is_bias_after_times_the_multiplier_at_frequency_0() -> None:
    before, x = build(3, padding=1, affine=False, bias_position="before"), random(2, 4, 6, 5)
    after = build(3, padding=1, affine=False)
    after.load_state_dict(before.state_dict())
    assert after.bias is not None
    with torch.no_grad():
        after.bias.mul_(after.multiplier(6, 5)[:, 0, 0])
    torch.testing.assert_close(after(x), before(x), rtol=0, atol=EXACT)


# Gradients.


@pytest.mark.parametrize("norm", ["published", "paper", "default"])
@pytest.mark.parametrize("convolution", ["3x3 stride 2", "2x2", "1x1", "torus, dilated, grouped", "reflect"])
def test_gradient_takes_the_multiplier_as_constant(
    convolution: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_size, options = CONVOLUTIONS[convolution]
    layer = build(kernel_size, **options, **NORMS[norm])
    values = [random(2, 4, 4, 5).requires_grad_(), *layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)
        return y

    y = function(*values)
    weights = random(*y.shape, seed=1)
    ours = torch.autograd.grad((y * weights).sum(), values)
    fixed = layer.multiplier(4, 5)
    monkeypatch.setattr(conv_norm, "spectral_multiplier", lambda *_: fixed)
    expected = torch.autograd.grad((function(*values) * weights).sum(), values)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)
    assert torch.autograd.gradcheck(function, values, fast_mode=True)


def test_gradient_of_the_weight_does_not_vanish_along_it() -> None:
    layer = build(3, padding=1, affine=False, bias=False)  # were v not constant, <weight, gradient> would be 0
    y = layer(random(2, 4, 6, 5))
    y.backward(weights := random(*y.shape, seed=1))
    assert layer.weight.grad is not None
    torch.testing.assert_close((layer.weight * layer.weight.grad).sum(), (y * weights).sum())


def test_training_and_eval_are_one_function_of_the_current_weight() -> None:
    layer, x = build(3, padding=1), random(2, 4, 6, 5)
    expected = layer(x)
    assert torch.equal(layer.eval()(x), expected)
    with torch.no_grad():
        layer.weight.copy_(random(6, 4, 3, 3, seed=7))
    assert not torch.allclose(layer(x), expected)
    assert torch.equal(layer.train()(x), layer.eval()(x))


# Numbers of the published code.


@pytest.mark.parametrize(
    "name", ["k1s1p0_noaffine", "k3s1p1_affine", "k3s1p1_noaffine", "k3s1p1_noaffine_bias", "k3s2p1_noaffine"]
)
def test_published_code_gives_the_same(name: str) -> None:
    golden = {
        key: torch.as_tensor(value)
        for key, value in np.load(shared_folder("golden") / f"convnorm_{name}_f64.npz").items()
    }

    def close(ours: Tensor | None, key: str) -> None:
        assert ours is not None
        tolerance = GOLDEN[torch.float64]
        torch.testing.assert_close(ours, golden[key], rtol=tolerance, atol=tolerance, msg=lambda m: f"{key}: {m}")

    of = {"weight": "weight", "bias": "bias", "affine_weight": "r_weight", "affine_bias": "r_bias"}
    k, stride, padding = (int(golden[key]) for key in ("k", "stride", "padding"))
    options: dict[str, Any] = {"affine": "r_weight" in golden, "bias": "bias" in golden, "bias_position": "before"}
    layer = ConvNorm2d(3, 4, k, stride, padding, dtype=torch.float64, **options)
    layer.load_state_dict({ours: golden[theirs] for ours, theirs in of.items() if theirs in golden})
    full = nn.functional.conv2d(golden["x"], golden["weight"], golden.get("bias"), padding=k - 1)
    v = layer.multiplier(8, 7)
    close(v if golden["V_1"].shape == v.shape else v[:, :1, :1], "V_1")
    close(full, "conv_full_padded")
    close(conv_norm.filter_by(full, v), "precond_full")
    plain = ConvNorm2d(3, 4, k, stride, padding, dtype=torch.float64, **{**options, "affine": False})
    plain.load_state_dict({key: golden[key] for key in ("weight", "bias") if key in golden})
    close(plain(golden["x"]).detach(), "precond_cropped")
    x = golden["x"].clone().requires_grad_()
    y = layer(x)
    close(y.detach(), "y_train")
    y.backward(golden["grad_out"])
    close(x.grad, "grad_x")
    for ours, parameter in layer.named_parameters():
        close(parameter.grad, f"grad_{of[ours]}")
