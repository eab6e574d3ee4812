"""The one question that layers ask: does somebody who traces them want something else in their place?

An exporter answers with a `Tracer` for the length of a `with`; norms know nothing of its graphs. Where nobody does,
torch.onnx.export traces what layers run: in mode tracked standard operators with the running statistics, in mode
batch and in training a kernel of augserve, which it refuses, since ONNX has no such operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor

Pair = tuple[int, int]


class Tracer(Protocol):
    """What stands for layers in somebody's graph; `layer` is the one that asks."""

    def norm(self, layer: Any, x: Tensor) -> Tensor:
        """Return what stands for a layer with statistics modes, applied to x (N, C, *spatial)."""

    def conv_norm(
        self, layer: Any, size: tuple[int, int], x: Tensor, lengths: list[tuple[int, int]]
    ) -> Tensor | None:
        """Return what stands for a ConvNorm2d, or None where it is to compute by itself.

        Args:
            layer: the ConvNorm2d.
            size: height and width of its input.
            x: that input (N, Ci, H, W), extended as the padding mode says, other than by zeros.
            lengths: zeros to pad; those of the torus; where the output begins in it; the span that it steps over.
        """


_tracer: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


@contextmanager
def traced_by(who: Tracer) -> Iterator[None]:
    """Let layers ask `who`, inside a `with` block."""
    token = _tracer.set(who)
    try:
        yield
    finally:
        _tracer.reset(token)


def tracer() -> Tracer | None:
    """Return who traces, or None."""
    return _tracer.get()
