"""What the kernels are asked for, the same on every device: a norm, and how rows make groups."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from augserve.operators import Spread

AUG, ROBUST, ROBUST_RANGE = range(3)  # as augserve_kind of native/include/augserve.h
SPREADS: tuple[Spread, ...] = ("variance", "denominator", "range")  # that each of them divides by


class Spec(NamedTuple):
    """A norm, apart from its data.

    Args:
        kind: AUG, ROBUST or ROBUST_RANGE.
        exponent: phi of AUG where it is one number, p of the others.
        eps: added to the variance or the denominator.
        rtol: width of the median's bracket, in standard deviations.
        max_steps: passes of the solver at most.
    """

    kind: int
    exponent: float
    eps: float
    rtol: float
    max_steps: int


class Groups(NamedTuple):
    """Rows cut into statistics groups.

    Args:
        order: int64 (N,), the rows' indices, group after group.
        offsets: int64 (G + 1,), where each group begins in `order`.
    """

    order: Tensor
    offsets: Tensor


class Moving(NamedTuple):
    """Running statistics that move toward those of a batch: s += momentum (new - s).

    Args:
        center: float32 (C,).
        spread: float32 (C,), of the variance, the denominator or the range.
        momentum: the weight of the batch.
        unbiased: what the biased variance is multiplied with.
    """

    center: Tensor
    spread: Tensor
    momentum: float
    unbiased: float


class Ending(NamedTuple):
    """What follows a norm: y = max(0, norm(x) + residual).

    Args:
        residual: like x; None adds nothing.
        relu: whether negative numbers become 0.
    """

    residual: Tensor | None = None
    relu: bool = False


NO_ENDING = Ending()
