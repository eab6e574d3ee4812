"""SimBA: an attack that needs no gradient, only the model's scores.

    for each coordinate q, in a random order, and each step a in (-epsilon, +epsilon):
        accept x + a q, and go on to the next coordinate, if it lowers p(y | x)

Here in the pixel basis: q is one channel of one pixel. Source: Guo et al. 2019, "Simple black-box adversarial
attacks", algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from augserve.errors import ConfigurationError, InputError, unknown_choice

Direction = Literal["first", "better"]


@dataclass(frozen=True)
class SimbaResult:
    """What SimBA made of N images in S steps, with the columns of the published code.

    Args:
        adversarial: the attacked images (N, *pixels), in the dtype and the range of the originals.
        probabilities: of the true class after each step (N, S).
        successes: whether the image was misclassified before each step (N, S), bool; the last column: at the end.
        queries: what each step cost in forward passes of the image (N, S), int64. The first pass over the
            originals is not counted.
        l2: the norm of the sum of the accepted steps before each step (N, S), in pixel units and before clipping:
            an upper bound of the distance between `adversarial` and the originals.
        linf: as l2, in the maximum norm (N, S).
    """

    adversarial: Tensor
    probabilities: Tensor
    successes: Tensor
    queries: Tensor
    l2: Tensor
    linf: Tensor

    @property
    def success(self) -> Tensor:
        """Whether each image is misclassified in the end (N,), bool."""
        return self.successes[:, -1]

    @property
    def num_queries(self) -> Tensor:
        """What each image cost in all (N,), int64."""
        return self.queries.sum(1)


@torch.no_grad()
def simba(
    model_fn: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    max_steps: int,
    order: Tensor | None = None,
    generator: torch.Generator | None = None,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    direction: Direction = "first",
    stop_when_misclassified: bool = True,
) -> SimbaResult:
    """Attack a batch of images by SimBA in the pixel basis, each until it is misclassified.

        x <- clip(x + a e_k) for the first a in (-epsilon, +epsilon) that lowers p(y | x), else x, for k in `order`

    The images take the same coordinates but are attacked one by one: `model_fn` must score each row independently
    of the others, and gets only the rows still under attack. A model that normalizes by batch statistics does not:
    close it over fixed companions, or attack groups of one row. Probabilities are compared as log-odds, so that a
    model sure to the last digit of p = 1 can be attacked as well.

    Args:
        model_fn: maps images (n, *pixels), n <= N, to logits (n, K), K >= 2; normalization of pixels inside.
        images: (N, *pixels), a floating dtype, within `pixel_range`.
        labels: the true classes (N,), int64.
        epsilon: the step on one coordinate, in the units of the pixels: for the range (0, 1), 0.2 is usual.
        max_steps: how many coordinates are tried at most; each is tried once.
        order: the coordinates of a flattened image in the order they are tried, distinct integers, the same for
            all images. None draws a random one.
        generator: draws the order; None takes torch's own.
        pixel_range: the least and the largest value of a pixel.
        direction: "first" is the paper's algorithm. "better" takes whichever of -epsilon and +epsilon lowers
            p(y | x) more, as the published code for batches does; like that code it counts the second query only
            where the first did not lower it, though it makes both.
        stop_when_misclassified: False goes on to the last step, as the published code for a single image does.

    Returns:
        A `SimbaResult` with S = min(max_steps, number of coordinates) columns.

    Raises:
        ConfigurationError: epsilon outside (0, width of the range], max_steps < 1, an empty range, an unknown
            direction, or an order that is not one of distinct coordinates.
        InputError: images or labels of another shape, type or range; logits that are not (n, K), or NaN.

    Reference: Guo et al. 2019, algorithm 1.

    Example:
        >>> model = torch.nn.Linear(12, 10)
        >>> simba(model, torch.rand(4, 12), torch.arange(4), epsilon=0.2, max_steps=5).adversarial.shape
        torch.Size([4, 12])
    """
    low, high = pixel_range
    _check_images(images, labels, low, high)
    if not 0 < epsilon <= high - low:
        raise ConfigurationError(
            f"epsilon must be in (0, {high - low:g}], in the units of the pixels; got {epsilon}"
        )
    if max_steps < 1:
        raise ConfigurationError(f"max_steps must be at least 1; got {max_steps}")
    if direction not in get_args(Direction):
        raise unknown_choice("direction", direction, get_args(Direction))
    coordinates = _order(order, images[0].numel(), generator)[:max_steps]

    adversarial = images.flatten(1).clone(memory_format=torch.contiguous_format)
    log_odds, wrong = _score(model_fn(images), labels)
    accepted = torch.zeros_like(labels)
    empty = log_odds.new_empty(len(images), len(coordinates))
    result = SimbaResult(
        adversarial=adversarial.view_as(images),
        probabilities=torch.empty_like(empty),
        successes=torch.empty_like(empty, dtype=torch.bool),
        queries=torch.zeros_like(empty, dtype=torch.int64),
        l2=torch.empty_like(empty),
        linf=torch.empty_like(empty),
    )
    for k, coordinate in enumerate(coordinates):
        result.successes[:, k] = wrong
        result.l2[:, k] = epsilon * accepted.sqrt()
        result.linf[:, k] = epsilon * (accepted > 0)
        attacked = ~wrong if stop_when_misclassified else torch.ones_like(wrong)
        lowered = torch.zeros_like(wrong)
        before = adversarial[:, coordinate].clone()
        for step in (-epsilon, epsilon):
            result.queries[:, k] += attacked & ~lowered
            rows = (attacked if direction == "better" else attacked & ~lowered).nonzero()[:, 0]
            if len(rows) == 0:
                break
            candidates = adversarial[rows]
            candidates[:, coordinate] = (before[rows] + step).clamp(low, high)
            odds, mistaken = _score(model_fn(candidates.view(-1, *images.shape[1:])), labels[rows])
            lower = odds < log_odds[rows]
            taken = rows[lower]
            adversarial[taken] = candidates[lower]
            log_odds[taken], wrong[taken], lowered[taken] = odds[lower], mistaken[lower], True
        accepted += lowered
        result.probabilities[:, k] = log_odds.sigmoid()
    result.successes[:, -1] = wrong
    return result


def _score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-odds of the true class, log p - log(1 - p), and whether another is predicted, (n,) each."""
    if logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2 or not logits.is_floating_point():
        came = f"{logits.dtype} of shape {tuple(logits.shape)}"
        raise InputError(f"expected logits ({len(labels)}, K) with K >= 2 from the model; got {came}")
    if labels.max() >= logits.shape[1]:
        raise InputError(f"expected labels below {logits.shape[1]}, the model's classes; got {int(labels.max())}")
    if logits.isnan().any():
        raise InputError("expected numbers from the model; got NaN: check its weights and the range of the images")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    others = logits.scatter(1, labels[:, None], -math.inf).logsumexp(1)
    return logits.gather(1, labels[:, None])[:, 0] - others, logits.argmax(1) != labels


def _order(order: Tensor | None, size: int, generator: torch.Generator | None) -> list[int]:
    if order is None:
        order = torch.randperm(size, generator=generator, device=generator.device if generator else "cpu")
    values = order.flatten().tolist()
    distinct = len(set(values)) == len(values) > 0 and min(values) >= 0 and max(values) < size
    if not distinct or order.is_floating_point() or order.ndim != 1:
        raise ConfigurationError(
            f"expected an order of distinct integers from 0 to {size - 1}, the coordinates of one image; got "
            f"{len(set(values))} distinct values in {order.dtype} of shape {tuple(order.shape)}"
        )
    return values


def _check_images(images: Tensor, labels: Tensor, low: float, high: float) -> None:
    if not low < high:
        raise ConfigurationError(f"pixel_range must be (least, largest); got ({low}, {high})")
    if not images.is_floating_point() or images.ndim < 2 or images.numel() == 0:
        came = f"{images.dtype} of shape {tuple(images.shape)}"
        raise InputError(f"expected images (N, *pixels) of a floating dtype, at least one; got {came}")
    if not (low <= images.min() and images.max() <= high):
        came = f"{images.min():g} to {images.max():g}"
        raise InputError(f"expected pixels from {low:g} to {high:g}; got {came}: rescale them or give pixel_range")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or labels.min() < 0:
        came = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise InputError(f"expected labels ({len(images)},) of int64, none negative; got {came}")
