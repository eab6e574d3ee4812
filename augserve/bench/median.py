"""The accuracy of the generalized median: the bar it is built to, measured against its definition.

An error is |mu - reference| in standard deviations of the data, where `reference` bisects in float64 the very same
values, as they are once rounded to the dtype.

A row meets the bar where, in every draw, the error is at most 1e-6 (float64) or 2e-4 (float32, from 32 values on),
mu lies in [min, max], the solver took at most 32 passes, and its bracket is a certificate: it holds the reference
and is as narrow as asked, both up to rounding. NaN meets no bar. In float32 smaller sets have no bar for the error,
since two nearly equal values deviate by less than their midpoint is rounded; they meet the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from augserve.errors import ConfigurationError, unknown_choice
from augserve.norms.median import Status, generalized_median
from augserve.norms.median.problem import check_phi, reference

PHIS = (1.0, 1.05, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0, 8.0, math.inf)
SIZES = (1, 2, 4, 32, 512, 16384, 131072)
MAX_PASSES = 32
FLAT = 1e-9  # of the largest |value|: the least unit of an error, for data whose deviation is 0 but for rounding
ROUNDING = 8  # epsilons of the largest |value| by which ends of a bracket may be off
HALVINGS = 64  # of the range, which is at most sqrt(2 m) deviations: bisection errs by 3e-17 of one, m = 131072


@dataclass(frozen=True)
class Precision:
    """What is asked of a dtype.

    Args:
        bar: the largest error, in standard deviations.
        smallest: the number of values from which on that bar holds.
        rtol: the solver's, unless another is given. In float32 that of the layers: where an outlier puts mu far
            from the mean, the format cannot tell apart ends that are 1e-6 deviations apart.
    """

    bar: float
    smallest: int
    rtol: float


PRECISIONS = {
    "float64": Precision(bar=1e-6, smallest=1, rtol=1e-6),
    "float32": Precision(bar=2e-4, smallest=32, rtol=1e-5),
}


@dataclass(frozen=True)
class MedianRow:
    """The worst of several draws of one case.

    Args:
        dtype: name of the data's dtype.
        case: name of the data's distribution.
        phi: the exponent.
        m: values in a set.
        error: |mu - reference| in standard deviations, or in 1e-9 of the largest |value| if that is more.
        passes: passes over the data.
        inside: mu lies in [min, max].
        certified: the solver converged to a bracket that holds the reference and is as narrow as asked.
        bar: the largest error allowed; inf where none is set.
    """

    dtype: str
    case: str
    phi: float
    m: int
    error: float
    passes: int
    inside: bool
    certified: bool
    bar: float

    @property
    def ok(self) -> bool:
        """Whether the row meets the bar in everything."""
        return self.error <= self.bar and self.inside and self.certified and self.passes <= MAX_PASSES


@dataclass(frozen=True)
class MedianSummary:
    """What many rows come to.

    Args:
        worst: the row of the largest error, among those that have a bar for it; NaN is the largest.
        most_passes: of any row.
        missed: the rows that miss the bar.
    """

    worst: MedianRow
    most_passes: int
    missed: tuple[MedianRow, ...]


def median_accuracy(
    dtype: str = "float64",
    *,
    cases: Sequence[str] | None = None,
    phis: Sequence[float] = PHIS,
    sizes: Sequence[int] = SIZES,
    rtol: float | None = None,
    max_steps: int = MAX_PASSES,
    seed: int = 0,
) -> Iterator[MedianRow]:
    """Measure the generalized median, one row at a time: by case, then size, then exponent.

    Args:
        dtype: "float64" or "float32".
        cases: names out of `CASES`; None takes all.
        phis: exponents in [1, inf].
        sizes: numbers of values, at least 1 each.
        rtol: as `generalized_median`; None takes 1e-6 in float64, 1e-5 in float32.
        max_steps: as `generalized_median`.
        seed: of the draws, which do not depend on what else is measured.

    Returns:
        The rows, each measured when it is asked for.

    Raises:
        ConfigurationError: an unknown dtype or case, an exponent, size or seed out of range.

    Example:
        >>> next(median_accuracy(cases=["normal"], phis=[1.5], sizes=[512])).ok
        True
    """
    chosen = tuple(CASES if cases is None else cases)
    for case in chosen:
        if case not in CASES:
            raise unknown_choice("case", case, CASES)
    if dtype not in PRECISIONS:
        raise unknown_choice("dtype", dtype, PRECISIONS)
    if min(sizes, default=1) < 1 or not 0 <= seed < 2**63:
        raise ConfigurationError(f"expected a seed in [0, 2^63) and sizes of 1 or more; got {seed} and {sizes}")
    asked = PRECISIONS[dtype]
    exponents = [check_phi(phi) for phi in phis]
    width = asked.rtol if rtol is None else rtol

    def measure() -> Iterator[MedianRow]:
        for case in chosen:
            for m in sizes:
                x = draw(case, 12 if m <= 512 else 2, m, seed).to(getattr(torch, dtype))
                bar = asked.bar if m >= asked.smallest else math.inf
                for phi in exponents:
                    yield MedianRow(dtype, case, phi, m, *_compare(x, phi, width, max_steps), bar)

    return measure()


def summarize(rows: Sequence[MedianRow]) -> MedianSummary:
    """Return what the rows come to; at least one of them has a bar for its error."""
    worst = max((r for r in rows if r.bar < math.inf), key=lambda r: math.inf if math.isnan(r.error) else r.error)
    return MedianSummary(worst, max(r.passes for r in rows), tuple(r for r in rows if not r.ok))


def draw(case: str, rows: int, m: int, seed: int = 0) -> Tensor:
    """Return the data of a case, (rows, m), float64."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, m, generator=generator, dtype=torch.float64)
    u = torch.rand(rows, m, generator=generator, dtype=torch.float64)
    return CASES[case](z, u)


# From independent z, normal, and u, uniform in [0, 1). -ln(1 - u) is half a chi-square of 2 degrees of freedom.
CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normal": lambda z, u: z,
    "relu": lambda z, u: z.clamp_min(0),
    "relu-1": lambda z, u: (z - 1).clamp_min(0),
    "student": lambda z, u: z / (-torch.log1p(-u)).sqrt(),
    "outlier": lambda z, u: torch.cat([torch.full_like(z[:, :1], 1e4), z[:, 1:]], dim=1),
    "clusters": lambda z, u: torch.where(u < 0.7, 0.0, 10.0) + 0.1 * z,
    "lognormal": lambda z, u: torch.exp(1.5 * z),
    "zeros": lambda z, u: torch.where(u < 0.9, 0.0, z),
    "constant": lambda z, u: torch.full_like(z, 3.7),
}


def _compare(x: Tensor, phi: float, rtol: float, max_steps: int) -> tuple[float, int, bool, bool]:
    """Return the worst error, the most passes, and whether all rows of x are inside and certified."""
    result = generalized_median(x, phi, dim=1, rtol=rtol, max_steps=max_steps)
    value, lower, upper = (part.double() for part in result[:3])
    exact = x.double()
    answer = reference(exact, phi, HALVINGS)
    magnitude = exact.abs().amax(dim=1)
    std = exact.std(dim=1, correction=0)
    difference = (value - answer).abs()
    error = torch.where(difference == 0, 0.0, difference / torch.maximum(std, FLAT * magnitude))  # 0/0: all are 0
    own = torch.finfo(torch.float64).eps / (phi - 1) if phi > 1 else 0.0  # of the reference, where g is nearly flat
    slack = (ROUNDING * torch.finfo(x.dtype).eps + own) * magnitude
    held = (lower - slack <= answer) & (answer <= upper + slack)
    narrow = upper - lower <= rtol * std + slack
    inside = (exact.amin(dim=1) <= value) & (value <= exact.amax(dim=1))
    certified = held & narrow & (result.status == Status.CONVERGED)
    return float(error.max()), int(result.num_steps.max()), bool(inside.all()), bool(certified.all())
