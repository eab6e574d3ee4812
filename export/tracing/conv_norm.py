"""ConvNorm2d in traced graphs: convolutions, and one node that filters each channel on a torus.

    y_k = take(iFFT(v_k FFT(x_k))) + shift_k

v depends on the weight and the size of the input alone, both known before a network is traced, so it is a constant
of the graph. `spectra_of` computes it. With it a ConvNorm2d stands for

    full = Conv(x, a);    y = CircularFilter(full, v[, shift]);    y = Conv(y, r)

The positions that `take` lists are crop and stride and the zeros that r sees beyond a border, all in one. A kernel
of 1 x 1 is one convolution, whose weight has v and r as factors. `augserve.export.operators.filters` gives the node
its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augserve.norms import ConvNorm2d
from augserve.norms.modes import evaluating

DOMAIN, FILTER = "augserve.traced", "CircularFilter"
OUTSIDE = -1  # in place of a position: a zero

Pair = tuple[int, int]


@dataclass(frozen=True)
class Constants:
    """What a layer's nodes need beside its parameters, for inputs of one size."""

    name: str  # of the layer
    multiplier: Tensor  # v (Co, Lh, Lw // 2 + 1)
    weight: Tensor | None  # of the convolution, where that is not the layer's parameter
    shift: Tensor | None  # what is added last (Co,)


Spectra = Mapping[tuple[int, Pair], Constants]  # by the id of a layer and the size of its input


def spectra_of(model: nn.Module, example: Tensor) -> Spectra:
    """Return what the nodes of every ConvNorm2d of a network need.

    Args:
        model: it runs once on the example, in eval mode, to show the sizes that its layers get. It is not changed.
        example: rows (N, C, H, W) of the size to be exported.

    Example:
        >>> len(spectra_of(nn.Sequential(ConvNorm2d(3, 8, 3)), torch.randn(2, 3, 8, 8)))
        1
    """
    found: dict[tuple[int, Pair], Constants] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, ConvNorm2d):

            def look(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                assert isinstance(module, ConvNorm2d)  # noqa: S101 - the hook is on no other
                size = (int(inputs[0].shape[-2]), int(inputs[0].shape[-1]))
                if (id(module), size) not in found:
                    found[id(module), size] = _constants_of(module, name, size)

            handles.append(layer.register_forward_pre_hook(look))
    try:
        if handles:
            with torch.no_grad(), evaluating(model):
                model(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def conv_norm_nodes(layer: ConvNorm2d, constants: Constants, x: Tensor, lengths: list[Pair]) -> Tensor:
    """Return the layer's nodes applied to an input.

    Args:
        layer: what is traced.
        constants: what is bound for it.
        x: the input (N, Ci, H, W), extended as its padding mode says, other than by zeros.
        lengths: zeros to pad; those of the torus; where the output begins in it; the span that it steps over.
    """
    zeros, size, start, span = lengths
    torus, stride, r = layer.padding_mode == "circular", layer.stride, layer.affine_weight
    counts = [-(-span[d] // stride[d]) for d in (0, 1)]
    if layer.kernel_size == (1, 1):
        assert constants.weight is not None  # noqa: S101 - computed for such kernels
        if torus and any(start):
            for d in (0, 1):
                x = x.index_select(d - 2, torch.tensor(_positions(start[d], stride[d], counts[d], size[d], True)))
            stride = (1, 1)
        return F.conv2d(x, constants.weight.clone(), _copied(constants.shift), stride, zeros, 1, layer.groups)
    weight = layer.weight if constants.weight is None else constants.weight.clone()
    before = layer.bias if layer.bias_position == "before" else None
    full = F.conv2d(x, weight, before, 1, zeros, layer.dilation, layer.groups)
    if r is None:
        taken = [_positions(start[d], stride[d], counts[d], size[d], torus) for d in (0, 1)]
        return _filter(full, constants, size, taken, constants.shift)
    taken, padding = [], [0, 0]
    for d, taps in enumerate(layer.kernel_size):
        if layer.affine_position == "before_crop":  # r steps over all that was normalized
            count = stride[d] * (counts[d] - 1) + taps
            taken.append(_positions(start[d] - taps // 2, 1, count, size[d], torus))
        else:  # an even kernel sees one position more in front than behind
            padding[d] = (taps - 1) // 2
            front = [OUTSIDE] * (taps // 2 - padding[d])
            taken.append(front + _positions(start[d], stride[d], counts[d], size[d], torus))
    y = _filter(full, constants, size, taken, None)
    step = stride if layer.affine_position == "before_crop" else 1
    return F.conv2d(y, r, _copied(constants.shift), step, padding, 1, layer.out_channels)


def _copied(shift: Tensor | None) -> Tensor | None:
    """Return a copy: of a convolution with constants themselves, torch says that it holds below 16 rows alone."""
    return None if shift is None else shift.clone()


def _filter(x: Tensor, constants: Constants, size: Pair, taken: list[list[int]], shift: Tensor | None) -> Tensor:
    y: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{FILTER}",
        (x, constants.multiplier) if shift is None else (x, constants.multiplier, shift),
        {"layer": constants.name, "size": list(size), "rows": taken[0], "columns": taken[1]},
        dtype=x.dtype,
        shape=(*x.shape[:2], len(taken[0]), len(taken[1])),
        version=1,
    )
    return y


def _positions(first: int, step: int, count: int, length: int, torus: bool) -> list[int]:
    positions = [first + step * k for k in range(count)]
    return [p % length if torus else p if 0 <= p < length else OUTSIDE for p in positions]


def _constants_of(layer: ConvNorm2d, name: str, size: Pair) -> Constants:
    v, weight = layer.multiplier(*size).contiguous(), layer.weight
    shifts = [layer.affine_bias, layer.bias if layer.bias_position == "after" else None]
    made: Tensor | None = None
    if layer.kernel_size == (1, 1):
        factor = v[:, 0, 0].double()
        if layer.affine_weight is not None:
            factor = factor * layer.affine_weight.detach().flatten()
        made = (weight.detach() * factor.view(-1, 1, 1, 1)).to(weight.dtype)
        if layer.bias is not None and layer.bias_position == "before":
            shifts.append(layer.bias * factor)
    elif not isinstance(weight, nn.Parameter):  # a parametrization computes it
        made = weight.detach().clone()
    terms = [shift.detach().double() for shift in shifts if shift is not None]
    return Constants(name, v, made, torch.stack(terms).sum(dim=0).to(weight.dtype) if terms else None)
