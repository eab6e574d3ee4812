"""What the solver answers: a value with its certificate."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class Status(IntEnum):
    """Why the solver stopped, for one problem."""

    CONVERGED = 0
    MAX_STEPS = 1
    NOT_FINITE = 2

    @property
    def message(self) -> str:
        """The status in words."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "the bracket is as narrow as asked",
    Status.MAX_STEPS: "the bracket is certain, but wider than asked: max_steps was reached",
    Status.NOT_FINITE: "the data hold NaN or inf, so that the result is NaN",
}


class MedianResult(NamedTuple):
    """The generalized geometric median and the bracket that it is proved to lie in.

    Args:
        value: mu, the shape of x without the reduced dimensions. Differentiable in x.
        lower: lower end of the bracket; lower <= mu <= upper up to rounding of the data's own scale.
        upper: upper end of the bracket.
        num_steps: int64, passes over the data; 0 where a closed form was used.
        status: int64, a `Status`.
    """

    value: Tensor
    lower: Tensor
    upper: Tensor
    num_steps: Tensor
    status: Tensor
