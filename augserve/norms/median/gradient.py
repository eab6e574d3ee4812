"""The gradient of the generalized geometric median in its data and its exponent, by the implicit function theorem.

    d mu / d x_i = w_i / sum_j w_j,    w_i = |x_i - mu|^(phi - 2)
    d mu / d phi = sum_i sgn(x_i - mu) |x_i - mu|^(phi - 1) ln|x_i - mu| / ((phi - 1) sum_j w_j)

The weights are positive and sum to 1. For phi < 2 a value at mu takes the limit: it has all the weight (several
share it evenly); for phi = 1 the middle values share it, for phi = inf the extreme ones. Both formulas do not
change when the differences are divided by the largest one, which is done so that no power overflows. Where the
closed forms hold whatever the exponent (phi = 1 or inf, up to two values) d mu / d phi is given as 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from augserve.norms.median.problem import largest_phi
from augserve.norms.reduction import Reduction


def influence(
    x: Tensor, mu: Tensor, phi: float | Tensor, reduction: Reduction, scale: Tensor, interior: bool = False
) -> Tensor:
    """Return scale * d mu / d x_i; without the scale it sums to 1 over each set.

    Args:
        x: the data, float32 or float64.
        mu: their median, a statistic of x.
        phi: the exponent in [1, inf], or one for each set.
        reduction: how x makes sets.
        scale: a statistic of x, such as dL / d mu.
        interior: every exponent is known to lie in (1, inf).

    Returns:
        The shape of x; differentiable in x, mu, phi and scale where these are.
    """
    if isinstance(phi, Tensor):
        if interior:
            return _weights(x, mu, phi, reduction, scale)
        ends = (phi == 1) | (phi > largest_phi(x.dtype))
        inner = _weights(x, mu, torch.where(ends, 2.0, phi), reduction, scale)
        extreme = torch.where(
            reduction.each(phi == 1), _middle(x, mu, reduction, scale), _extreme(x, reduction, scale)
        )
        return torch.where(reduction.each(ends), extreme, inner)
    if phi == 1:
        return _middle(x, mu, reduction, scale)
    if phi > largest_phi(x.dtype):
        return _extreme(x, reduction, scale)
    if phi == 2:
        return reduction.each(scale / reduction.count(x)).expand_as(x).contiguous()
    return _weights(x, mu, phi, reduction, scale)


def sensitivity(x: Tensor, mu: Tensor, phi: Tensor, reduction: Reduction) -> Tensor:
    """Return d mu / d phi, a statistic of x; arguments as `influence`, with one exponent for each set."""
    ends = (phi == 1) | (phi > largest_phi(x.dtype))
    phi = torch.where(ends, 2.0, phi)
    a, reach, count = _relative(x, mu, reduction)
    p = phi - 1
    sign = torch.sign(x - reduction.each(mu))
    numerator = reduction.sum(sign * a.pow(reduction.each(p)) * a.log())
    slope = reach * numerator / (p * _nonzero(reduction.sum(a.pow(reduction.each(p - 1)))))
    return torch.where(ends | (count <= 2), 0.0, slope)


def _weights(x: Tensor, mu: Tensor, phi: float | Tensor, reduction: Reduction, scale: Tensor) -> Tensor:
    a, _, count = _relative(x, mu, reduction)
    power = reduction.each(phi - 2) if isinstance(phi, Tensor) else phi - 2
    w = a.rsqrt_() if isinstance(phi, float) and phi == 1.5 else a.pow(power)
    if isinstance(count, int) and count <= 2:
        return (scale / count).expand_as(x).contiguous()
    total = reduction.sum(w)
    even = torch.where(total > 0, 0.0, scale / count)  # in a constant set, for phi > 2
    share = torch.addcmul(reduction.each(even), w, reduction.each(scale / _nonzero(total)))
    if isinstance(count, int):
        return share
    return torch.where(reduction.each(count <= 2), reduction.each(scale / count), share)


def _relative(x: Tensor, mu: Tensor, reduction: Reduction) -> tuple[Tensor, Tensor, int | Tensor]:
    """Return |x - mu| over its largest value, that value (1 in a constant set), and the number of values."""
    a = (x - reduction.each(mu)).abs_()
    reach = reduction.amax(a.detach())
    reach = _nonzero(reach)
    tiny = torch.finfo(x.dtype).eps ** 2  # a value at mu outweighs all others for phi < 2
    return a.div_(reduction.each(reach)).clamp_min_(tiny), reach, reduction.count(x)


def _nonzero(total: Tensor) -> Tensor:
    """Return the totals, 1 in the place of 0."""
    return torch.where(total > 0, total, 1.0)


def _middle(x: Tensor, mu: Tensor, reduction: Reduction, scale: Tensor) -> Tensor:
    """Half the weight to the nearest value on each side of the median, split evenly among ties."""
    at = reduction.each(mu)
    below = reduction.amax(torch.where(x <= at, x, -math.inf))
    above = reduction.amin(torch.where(x >= at, x, math.inf))
    return _shares(x, below, above, reduction, scale)


def _extreme(x: Tensor, reduction: Reduction, scale: Tensor) -> Tensor:
    return _shares(x, reduction.amin(x), reduction.amax(x), reduction, scale)


def _shares(x: Tensor, first: Tensor, second: Tensor, reduction: Reduction, scale: Tensor) -> Tensor:
    masks = [(x == reduction.each(end)).to(x.dtype) for end in (first, second)]
    sums = reduction.sums(masks)
    parts = [m * reduction.each(scale / (2 * total.clamp_min(1))) for m, total in zip(masks, sums, strict=True)]
    return parts[0] + parts[1]
