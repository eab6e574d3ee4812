"""The gradient of the generalized geometric median in its data, by the implicit function theorem.

    d mu / d x_i = w_i / sum_j w_j,    w_i = |x_i - mu|^(phi - 2)

The weights are positive and sum to 1. For phi < 2 a value at mu takes the limit: it has all the weight (several
share it evenly); for phi = 1 the middle values share it, for phi = inf the extreme ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def influence(rows: Tensor, mu: Tensor, phi: float) -> Tensor:
    """Return d mu / d x_i: (R, m), each row sums to 1; rows (R, m), mu (R,)."""
    if phi == 2:
        return torch.full_like(rows, 1 / rows.shape[1])
    if phi == 1 or math.isinf(phi):
        return _chosen(rows, phi)
    d = (rows - mu[:, None]).abs_()
    reach = d.amax(dim=1, keepdim=True)
    reach = torch.where(reach > 0, reach, 1.0)
    d.div_(reach)
    floor = torch.finfo(rows.dtype).eps ** 2 if phi < 2 else 0.0
    w = d.clamp_min_(floor).pow_(phi - 2)
    total = w.sum(dim=1, keepdim=True)
    uniform = total == 0  # phi > 2 and every value at mu
    return torch.where(uniform, 1 / rows.shape[1], w.div_(torch.where(uniform, 1.0, total)))


def _chosen(rows: Tensor, phi: float) -> Tensor:
    """Half the weight to each of the two values that the closed form averages, split evenly among ties."""
    if phi == 1:
        m = rows.shape[1]
        ordered = rows.sort(dim=1).values
        ends = ordered[:, (m - 1) // 2], ordered[:, m // 2]
    else:
        ends = torch.aminmax(rows, dim=1)
    shares = [(rows == end[:, None]).to(rows.dtype) for end in ends]
    return sum((s / s.sum(dim=1, keepdim=True).clamp_min(1) for s in shares), torch.zeros_like(rows)) / 2
