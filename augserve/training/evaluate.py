"""Accuracy of a network under each statistics mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from augserve.norms import norm_layers, use_statistics
from augserve.statistics import Mode, Statistics, split_rows

ORDER_SEED = 0  # a fixed order, so that the batches of two evaluations are the same


def default_mode(model: nn.Module) -> Mode:
    """Return the mode that inference uses unless told otherwise; "tracked" for a network without norm layers."""
    return next((layer.statistics.mode for layer in norm_layers(model).values()), "tracked")


@torch.no_grad()
def accuracy_by_mode(
    model: nn.Module,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    normalize: Callable[[Tensor], Tensor],
    batch_size: int,
    device: torch.device,
    modes: Sequence[Mode] = ("tracked", "batch"),
) -> dict[str, float]:
    """Return the share of right answers in [0, 1] by mode.

    In mode "batch" every `batch_size` rows, in one fixed shuffled order, are a statistics group; a remainder
    joins the last one.

    Args:
        model: the network; it is left in eval mode.
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        normalize: from uint8 pixels to the network's input.
        batch_size: rows in a run, and in a statistics group.
        device: where the network is.
        modes: statistics modes, each evaluated.
    """
    model.eval()
    order = np.random.default_rng(ORDER_SEED).permutation(len(labels))
    sizes = split_rows(len(labels), batch_size, "merge").sizes
    parts = np.split(order, np.cumsum(sizes)[:-1])
    result: dict[str, float] = {}
    for mode in modes:
        correct = 0
        with use_statistics(model, Statistics(mode)):
            for part in parts:
                rows = normalize(torch.from_numpy(images[part]).to(device))
                correct += int((model(rows).argmax(1).cpu() == torch.from_numpy(labels[part])).sum())
        result[mode] = correct / len(labels)
    return result
