"""The gradient of the generalized geometric median in its data, by the implicit function theorem.

    d mu / d x_i = w_i / sum_j w_j,    w_i = |x_i - mu|^(phi - 2)

The weights are positive and sum to 1. For phi < 2 a value at mu takes the limit: it has all the weight (several
share it evenly); for phi = 1 the middle values share it, for phi = inf the extreme ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def influence(x: Tensor, mu: Tensor, phi: float, dims: tuple[int, ...]) -> Tensor:
    """Return d mu / d x_i, which sums to 1 over the reduced dimensions.

    Args:
        x: the data, any shape, float32 or float64.
        mu: their median, the shape of x with size 1 in `dims`.
        phi: the exponent in [1, inf].
        dims: the reduced dimensions.

    Returns:
        The shape of x.
    """
    count = math.prod(x.shape[d] for d in dims)
    if phi == 2 or count <= 2:
        return torch.full_like(x, 1 / count)
    if phi == 1 or math.isinf(phi):
        return _chosen(x, phi, dims)
    d = (x - mu).abs_()
    reach = d.amax(dim=dims, keepdim=True)
    d.div_(torch.where(reach > 0, reach, 1.0))
    if phi < 2:
        d.clamp_min_(torch.finfo(x.dtype).eps ** 2)  # a value at mu outweighs all others
    w = d.rsqrt_() if phi == 1.5 else d.pow_(phi - 2)
    total = w.sum(dim=dims, keepdim=True)
    if phi < 2:
        return w.div_(total)
    constant = total == 0  # every value at mu: they share evenly
    return torch.where(constant, 1 / count, w / torch.where(constant, 1.0, total))


def _chosen(x: Tensor, phi: float, dims: tuple[int, ...]) -> Tensor:
    """Half the weight to each of the two values that the closed form averages, split evenly among ties."""
    if phi == 1:
        kept = [d for d in range(x.ndim) if d not in dims]
        flat = x.permute(*kept, *dims).flatten(len(kept))
        ordered = flat.sort(dim=-1).values
        m = ordered.shape[-1]
        shape = [1 if d in dims else x.shape[d] for d in range(x.ndim)]
        ends = [ordered[..., i].reshape(shape) for i in ((m - 1) // 2, m // 2)]
    else:
        ends = [x.amin(dim=dims, keepdim=True), x.amax(dim=dims, keepdim=True)]
    shares = [(x == end).to(x.dtype) for end in ends]
    first, second = (s / s.sum(dim=dims, keepdim=True).clamp_min(1) for s in shares)
    half: Tensor = (first + second) / 2
    return half
