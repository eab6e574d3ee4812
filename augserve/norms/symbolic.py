"""A norm layer as one node of an exported graph, in the operator domain `augserve`.

While torch.onnx traces a network, each layer stands for the node

    y = augserve::NAME(x, weight, bias, running_mean, running_spread[, group, tracked_weight[, exponents]])

group and tracked_weight are inputs of the graph, bound by `graph_inputs`; without them the node means tracked
statistics. augserve.export gives the nodes their meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from augserve.norms.base import StatisticsNorm

DOMAIN = "augserve"
LEARNED = "AugNormLearned"  # the one with exponents, one for each channel

_graph_inputs: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("graph_inputs", default=None)


@contextmanager
def graph_inputs(group: Tensor, tracked_weight: Tensor) -> Iterator[None]:
    """Bind the graph's group int64 (N,) and tracked_weight float (N,) for the layers traced inside."""
    token = _graph_inputs.set((group, tracked_weight))
    try:
        yield
    finally:
        _graph_inputs.reset(token)


def norm_node(layer: StatisticsNorm, x: Tensor) -> Tensor:
    """Return the layer's node applied to x (N, C, *spatial)."""
    name, attributes = layer.operator()
    ones, zeros = x.new_ones(layer.num_features), x.new_zeros(layer.num_features)
    given = (layer.weight, layer.bias, layer.running_mean, getattr(layer, layer.spread))
    parameters = [
        default if value is None else value
        for value, default in zip(given, (ones, zeros, zeros, ones), strict=True)
    ]
    inputs = (x, *parameters, *(_graph_inputs.get() or ()))
    exponents = layer.exponents()
    if exponents is not None and _graph_inputs.get() is not None:
        inputs = (*inputs, exponents.detach().to(torch.float32))
    y: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}", inputs, {**attributes}, dtype=x.dtype, shape=x.shape, version=1
    )
    return y
