"""How fast the norms are beside torch's BatchNorm2d, measured side by side in one process.

Every contestant takes its turn in every round, so that a machine that slows down slows all of them; the figures are
medians over the rounds, and ratios to nn.BatchNorm2d. The papers' method is AugNorm as its formulas are written in
plain torch: four Newton steps from the mean, gradients by autograd with the median's weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from augserve.errors import ConfigurationError, unknown_choice
from augserve.norms import AugNorm, BatchNorm, RobustNorm

SHAPES = ((128, 16, 32, 32), (128, 64, 16, 16), (32, 512, 4, 4), (256, 64, 56, 56), (8, 2048, 7, 7), (4096, 256))
NEWTON_STEPS = 4


@dataclass(frozen=True)
class NormRow:
    """One norm on one shape.

    Args:
        shape: of the input.
        norm: the contestant.
        forward_ms: median time of a forward pass in training.
        both_ms: median time of forward and backward.
        forward_ratio: forward_ms over that of nn.BatchNorm2d in the same rounds.
        both_ratio: both_ms over that of nn.BatchNorm2d in the same rounds.
        extra_mib: memory kept for backward beyond what nn.BatchNorm2d keeps, in MiB.
    """

    shape: tuple[int, ...]
    norm: str
    forward_ms: float
    both_ms: float
    forward_ratio: float
    both_ratio: float
    extra_mib: float


class PapersAugNorm(nn.Module):
    """AugNorm as printed: Newton's iteration from the mean in plain torch, phi = 1.5."""

    def __init__(self, num_features: int, phi: float = 1.5, eps: float = 1e-5) -> None:
        super().__init__()
        self.phi, self.eps = phi, eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *spatial)."""
        dims = (0, *range(2, x.ndim))
        shape = (1, -1, *(1,) * (x.ndim - 2))
        with torch.no_grad():
            mu = x.mean(dim=dims, keepdim=True)
            for _ in range(NEWTON_STEPS):
                d = mu - x
                w = d.abs().clamp_min(1e-12).pow(self.phi - 2)
                mu = mu - (w * d).sum(dim=dims, keepdim=True) / ((self.phi - 1) * w.sum(dim=dims, keepdim=True))
            w = (x - mu).abs().clamp_min(1e-12).pow(self.phi - 2)
            w = w / w.sum(dim=dims, keepdim=True)
        through = (w * x).sum(dim=dims, keepdim=True)
        s = x - (mu + through - through.detach())
        y = s * torch.rsqrt(s.square().mean(dim=dims, keepdim=True) + self.eps)
        return y * self.weight.view(shape) + self.bias.view(shape)


def contestants(num_features: int, ndim: int, device: torch.device, *, compiled: bool) -> dict[str, nn.Module]:
    """Return the layers that take part, in training mode; the first is what the others are compared with."""
    torchs = nn.BatchNorm1d if ndim == 2 else nn.BatchNorm2d
    layers: dict[str, nn.Module] = {
        "torch": torchs(num_features),
        "batch": BatchNorm(num_features),
        "aug-1.5": AugNorm(num_features, 1.5),
        "aug-1.25": AugNorm(num_features, 1.25),
        "robust": RobustNorm(num_features, track_running_stats=True),
        "papers": PapersAugNorm(num_features),
    }
    if compiled:
        layers["papers-compiled"] = torch.compile(PapersAugNorm(num_features))  # type: ignore[assignment]
    return {name: layer.to(device) for name, layer in layers.items()}


def measure_norms(
    device: str = "cpu",
    *,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    rounds: int = 9,
    compiled: bool = False,
    zeros: float = 0.0,
    relu: bool = False,
    seed: int = 0,
) -> Iterator[NormRow]:
    """Measure every norm on every shape.

    Args:
        device: "cpu" or "cuda".
        shapes: (N, C) or (N, C, H, W).
        rounds: how often every contestant takes its turn, after one round that is not counted.
        compiled: let torch.compile of the papers' method take part (it needs a C++ compiler, or Triton on CUDA).
        zeros: the fraction of the values that is 0, in [0, 1).
        relu: take the values after a ReLU.
        seed: of the data.

    Returns:
        The rows, shape by shape, each shape measured when its first row is asked for.

    Raises:
        ConfigurationError: an unknown or missing device, an impossible shape, fraction or number of rounds.

    Example:
        >>> [row.norm for row in measure_norms(shapes=[(8, 4, 5, 5)], rounds=1)][:3]
        ['torch', 'batch', 'aug-1.5']
    """
    if device not in ("cpu", "cuda"):
        raise unknown_choice("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device cuda: there is no CUDA device; use cpu")
    for shape in shapes:
        if len(shape) not in (2, 4) or min(shape) < 1 or shape[0] < 2:
            raise ConfigurationError(f"expected shapes (N, C) or (N, C, H, W) with N >= 2; got {tuple(shape)}")
    if rounds < 1 or not 0 <= zeros < 1:
        raise ConfigurationError(f"expected rounds >= 1 and zeros in [0, 1); got {rounds} and {zeros}")

    def measure() -> Iterator[NormRow]:
        place = torch.device(device)
        for shape in shapes:
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(shape, generator=generator)
            x = torch.where(torch.rand(shape, generator=generator) < zeros, 0.0, x)
            x = (x.relu() if relu else x).to(place).requires_grad_()
            yield from _measure_shape(x, contestants(shape[1], len(shape), place, compiled=compiled), rounds)

    return measure()


def _measure_shape(x: Tensor, layers: dict[str, nn.Module], rounds: int) -> Iterator[NormRow]:
    upstream = torch.randn_like(x)
    kept = {name: _kept_for_backward(layer, x) for name, layer in layers.items()}
    forward: dict[str, list[float]] = {name: [] for name in layers}
    both: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(rounds + 1):
        for name, layer in layers.items():
            first, second = _time(layer, x, upstream)
            if turn:
                forward[name].append(first)
                both[name].append(first + second)
    for name in layers:
        yield NormRow(
            tuple(x.shape),
            name,
            1e3 * statistics.median(forward[name]),
            1e3 * statistics.median(both[name]),
            _ratio(forward[name], forward["torch"]),
            _ratio(both[name], both["torch"]),
            (kept[name] - kept["torch"]) / 2**20,
        )


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _time(layer: nn.Module, x: Tensor, upstream: Tensor) -> tuple[float, float]:
    """Return the seconds of a forward and of the backward after it."""
    wait: Callable[[], None] = torch.cuda.synchronize if x.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    y = layer(x)
    wait()
    middle = time.perf_counter()
    y.backward(upstream)
    wait()
    end = time.perf_counter()
    x.grad = None
    layer.zero_grad()
    return middle - start, end - middle


def _kept_for_backward(layer: nn.Module, x: Tensor) -> int:
    """Return the bytes that a forward pass keeps for backward, without the input and the parameters."""
    sizes: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        y = layer(x)
    del y
    return sum(sizes.values())
