"""ConvNorm2d in exported graphs: convolutions, and one node that filters each channel on a torus.

    y_k = take(iFFT(v_k FFT(x_k))) + shift_k

v depends on the weight and the size of the input alone, both known before a network is traced, so it is a constant
of the graph. `spectra_for_export` computes it. Inside, a ConvNorm2d that torch.onnx traces stands for

    full = Conv(x, a);    y = CircularFilter(full, v[, shift]);    y = Conv(y, r)

The positions that `take` lists are crop and stride and the zeros that r sees beyond a border, all in one. A kernel
of 1 x 1 is one convolution, whose weight has v and r as factors. `augserve.export.operators.filters` gives the node
its meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augserve.norms.modes import evaluating

if TYPE_CHECKING:
    from augserve.norms.conv_norm import ConvNorm2d

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


_constants: ContextVar[dict[tuple[int, Pair], Constants] | None] = ContextVar("constants", default=None)


@contextmanager
def spectra_for_export(model: nn.Module, example: Tensor) -> Iterator[None]:
    """Bind the spectra of every ConvNorm2d of a network for torch.onnx, inside a `with` block.

    Args:
        model: it runs once on the example, in eval mode, to show the sizes that its layers get. It is not changed.
        example: rows (N, C, H, W) of the size to be exported.

    Example:
        >>> from augserve.norms import ConvNorm2d
        >>> network = nn.Sequential(ConvNorm2d(3, 8, 3))
        >>> with spectra_for_export(network, torch.randn(2, 3, 8, 8)):
        ...     pass  # torch.onnx.export(network, ...)
    """
    from augserve.norms.conv_norm import ConvNorm2d

    found: dict[tuple[int, Pair], Constants] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, ConvNorm2d):

            def look(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                assert isinstance(module, ConvNorm2d)  # noqa: S101 - the hook is on no other
                key = _key(module, inputs[0])
                if key not in found:
                    found[key] = _constants_of(module, name, key[1])

            handles.append(layer.register_forward_pre_hook(look))
    try:
        if handles:
            with torch.no_grad(), evaluating(model):
                model(example)
    finally:
        for handle in handles:
            handle.remove()
    token = _constants.set(found)
    try:
        yield
    finally:
        _constants.reset(token)


def constants_for(layer: ConvNorm2d, input: Tensor) -> Constants | None:
    """Return what is bound for a layer and inputs (N, Ci, H, W) or (Ci, H, W) of that size, or None."""
    return (_constants.get() or {}).get(_key(layer, input))


def traced(layer: ConvNorm2d, constants: Constants, x: Tensor, lengths: list[Pair]) -> Tensor:
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


def _key(layer: ConvNorm2d, input: Tensor) -> tuple[int, Pair]:
    return id(layer), (int(input.shape[-2]), int(input.shape[-1]))


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
