"""ConvNorm2d against dense operators in float64 NumPy, its proven properties, and nn.Conv2d's conventions."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from augserve.errors import ConfigurationError, InputError
from augserve.norms import conv_norm
from augserve.norms.conv_norm import ConvNorm2d, spectral_multiplier
from tests.shared import shared_folder
from tests.tolerances import GOLDEN

Array = np.ndarray[Any, Any]

EXACT = 1e-12  # float64 against dense matrices: another order of summation
TIGHT = 1e-13  # A A^T of at most 100 rows in float64
SINGLE = 2e-5  # float32 against itself at another scale, and against float64
HALF = {torch.float16: 5e-3, torch.bfloat16: 4e-2}  # some units in the last place of outputs of size 1 to 4

# kernel_size, then the options that differ from nn.Conv2d's defaults.
CONVOLUTIONS: dict[str, tuple[int | tuple[int, int], dict[str, Any]]] = {
    "1x1": (1, {}),
    "1x1 padded, strided": (1, {"padding": (2, 1), "stride": (1, 2)}),
    "1x3": ((1, 3), {}),
    "3x1 stride": ((3, 1), {"padding": 1, "stride": (2, 1)}),
    "2x2": (2, {"padding": 1}),
    "3x3": (3, {}),
    "3x3 padding 1": (3, {"padding": 1}),
    "3x3 full": (3, {"padding": 2}),
    "3x3 beyond the full": (3, {"padding": (3, 5)}),
    "3x3 stride 2": (3, {"padding": 1, "stride": 2}),
    "4x3 stride 3x2": ((4, 3), {"padding": (2, 0), "stride": (3, 2)}),
    "3x2 dilated": ((3, 2), {"padding": (1, 3), "dilation": (2, 3)}),
    "grouped": (3, {"padding": 1, "groups": 2}),
    "same, even": ((2, 4), {"padding": "same"}),
    "same, dilated": ((2, 3), {"padding": "same", "dilation": (3, 1)}),
    "valid": (3, {"padding": "valid", "stride": 2}),
    "reflect": (3, {"padding": (2, 1), "padding_mode": "reflect", "stride": (1, 2)}),
    "replicate, same": ((4, 3), {"padding": "same", "padding_mode": "replicate"}),
    "torus": (3, {"padding": 1, "padding_mode": "circular"}),
    "torus, unpadded": ((2, 3), {"padding_mode": "circular"}),
    "torus, repeated": (3, {"padding": (5, 4), "padding_mode": "circular", "stride": (2, 3)}),
    "torus, dilated, grouped": ((2, 3), {"padding": 3, "padding_mode": "circular", "dilation": 2, "groups": 2}),
    "torus smaller than the kernel": ((9, 6), {"padding": (6, 2), "padding_mode": "circular"}),
    "torus, 1x1": (1, {"padding": 1, "padding_mode": "circular"}),
}
NORMS: dict[str, dict[str, Any]] = {
    "published": {"affine_position": "after_crop", "bias_position": "before"},
    "paper": {"affine_position": "before_crop", "bias_position": "after"},
    "paper, biased": {"affine_position": "before_crop", "bias_position": "before"},
    "default": {},
    "plain": {"affine": False},
    "plain, no bias": {"affine": False, "bias": False},
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def build(kernel_size: int | tuple[int, int] = 3, **options: Any) -> ConvNorm2d:
    """Return a layer of 4 to 6 channels in float64 whose parameters are all drawn."""
    layer = ConvNorm2d(4, 6, kernel_size, **{"dtype": torch.float64, **options})
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(random(*parameter.shape, seed=100 + seed))
    return layer


# The dense operator.


def fourier(length: int) -> Array:
    index = np.arange(length)
    matrix: Array = np.exp(-2j * np.pi * np.outer(index, index) / length)
    return matrix


def correlate(x: Array, kernel: Array, first: list[int], size: list[int], dilation: Any, torus: bool) -> Array:
    """Return sum over taps t of kernel[t] x[first + q + dilation t] at each q of `size`, by loops."""
    y = np.zeros((len(x), len(kernel), *size))
    for q, t in itertools.product(np.ndindex(*size), np.ndindex(*kernel.shape[2:])):
        at = [first[d] + q[d] + dilation[d] * t[d] for d in (0, 1)]
        if torus:
            at = [at[d] % x.shape[2 + d] for d in (0, 1)]
        if all(0 <= at[d] < x.shape[2 + d] for d in (0, 1)):
            y[:, :, q[0], q[1]] += x[:, :, at[0], at[1]] @ kernel[:, :, t[0], t[1]].T
    return y


def kernel_of(layer: ConvNorm2d) -> Array:
    """Return the kernel (Co, Ci, kh, kw), with zeros between channels of different groups."""
    kernel = np.zeros((layer.out_channels, layer.in_channels, *layer.kernel_size))
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for k, weight in enumerate(layer.weight.detach().numpy()):
        group = k // outputs
        kernel[k, group * inputs : (group + 1) * inputs] = weight
    return kernel


def extent_of(layer: ConvNorm2d) -> list[int]:
    return [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]


def sides_of(layer: ConvNorm2d) -> list[tuple[int, int]]:
    if layer.padding == "same":
        return [((e - 1) // 2, e - 1 - (e - 1) // 2) for e in extent_of(layer)]
    return [(p, p) for p in ((0, 0) if isinstance(layer.padding, str) else layer.padding)]


def multiplier_of(layer: ConvNorm2d, size: list[int]) -> Array:
    """Return v (Co, *size) at every frequency."""
    kernel = kernel_of(layer)
    placed = np.zeros((*kernel.shape[:2], *size))
    for t in np.ndindex(*layer.kernel_size):
        row, column = (t[d] * layer.dilation[d] % size[d] for d in (0, 1))
        placed[:, :, row, column] += kernel[:, :, t[0], t[1]]
    spectrum = fourier(size[0]) @ placed @ fourier(size[1])
    v: Array = 1 / np.sqrt((np.abs(spectrum) ** 2).sum(axis=1))
    return v


def dense(layer: ConvNorm2d, x: Tensor) -> Array:
    """Return the layer's output for x (N, Ci, H, W) by loops and discrete Fourier matrices."""
    data, torus, extent, sides = x.numpy(), layer.padding_mode == "circular", extent_of(layer), sides_of(layer)
    bias = 0 if layer.bias is None else layer.bias.detach().numpy()[:, None, None]
    if layer.padding_mode in ("reflect", "replicate"):
        mode = "reflect" if layer.padding_mode == "reflect" else "edge"
        data, sides = np.pad(data, [(0, 0), (0, 0), *sides], mode=mode), [(0, 0), (0, 0)]
    margin = [0 if torus else max(extent[d] - 1, sides[d][0]) for d in (0, 1)]
    size = [data.shape[2 + d] + (0 if torus else 2 * margin[d] - extent[d] + 1) for d in (0, 1)]

    y = correlate(data, kernel_of(layer), [-m for m in margin], size, layer.dilation, torus)
    y = y + bias if layer.bias_position == "before" else y
    rows, columns, v = fourier(size[0]), fourier(size[1]), multiplier_of(layer, size)
    y = (rows.conj() @ (v * (rows @ y @ columns)) @ columns.conj()).real / math.prod(size)
    if layer.affine_position == "before_crop":
        y = depthwise(layer, y, torus)
    taken = []
    for d in (0, 1):
        span = data.shape[2 + d] + sum(sides[d]) - extent[d] + 1
        at = np.arange(0, span, layer.stride[d]) - sides[d][0] + margin[d]
        taken.append(at % size[d] if torus else at)
    y = y[:, :, taken[0]][:, :, :, taken[1]]
    if layer.affine_position == "after_crop":
        y = depthwise(layer, y, False)
    return y + bias if layer.bias_position == "after" else y


def depthwise(layer: ConvNorm2d, y: Array, torus: bool) -> Array:
    if layer.affine_weight is None or layer.affine_bias is None:
        return y
    r = np.zeros((layer.out_channels, layer.out_channels, *layer.kernel_size))
    for k, kernel in enumerate(layer.affine_weight.detach().numpy()):
        r[k, k] = kernel[0]
    first = [-(k // 2) for k in layer.kernel_size]
    shift: Array = layer.affine_bias.detach().numpy()[:, None, None]
    return correlate(y, r, first, list(y.shape[2:]), (1, 1), torus) + shift


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


# It is an nn.Conv2d.


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
