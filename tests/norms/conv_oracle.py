"""ConvNorm as dense matrices in NumPy, and the convolutions that it is tried on."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augserve.norms.conv_norm import ConvNorm2d

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
