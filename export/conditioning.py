"""How far torch's own float32 is from the numbers it stands for, row by row.

    error(row) = max over x' of |network in float32 (x') - network in float64 (x')|,    x' = x and x (1 +- 2^-23)

Statistics of few values can amplify rounding until every order of the same sums gives other logits: one row of
16 x 16 pixels has 1 or 4 positions in the deepest maps. torch and a file then differ although both are as right as
float32 can be. Only float64 tells that from a defect: in a network that does not amplify, the error is that of
rounding, and excuses nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

NEIGHBOURS = 8  # inputs a rounding away, beside the input itself: one error alone is chance
ROUNDING = 2.0**-23

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Conditioning:
    """float64 logits (N, K), and the largest error of torch's float32 in each row (N,)."""

    exact: Doubles
    error: Doubles

    def of(self, logits: npt.NDArray[np.float32]) -> Doubles:
        """Return how far each row of these logits is from float64, (N,)."""
        distance: Doubles = np.abs(logits - self.exact).max(1)
        return distance


def conditioning(model: nn.Module, rows: Tensor, run: Callable[[nn.Module, Tensor], Tensor]) -> Conditioning | None:
    """Measure a network's float32 against its float64.

    Args:
        model: in eval mode, float32. It is not changed.
        rows: (N, C, H, W), float32.
        run: gives a network's logits (N, K) of rows, in the statistics in question.

    Returns:
        None for a network that has no float64: its Python makes float32 tensors, or it cannot be copied.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [rows]
    for _ in range(NEIGHBOURS):
        sign = torch.randint(0, 2, rows.shape, generator=generator) * 2 - 1
        inputs.append(rows * (1 + ROUNDING * sign))
    try:
        wide = copy.deepcopy(model).double()
        with torch.no_grad():
            exact = [run(wide, x.double()) for x in inputs]
            errors = [(run(model, x).double() - y).abs().amax(1) for x, y in zip(inputs, exact, strict=True)]
    except (RuntimeError, TypeError, ValueError):
        return None
    if exact[0].dtype != torch.float64:
        return None
    return Conditioning(exact[0].numpy(), torch.stack(errors).amax(0).numpy())
