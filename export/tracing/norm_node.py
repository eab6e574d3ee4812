"""A norm layer as one node of a traced graph, in the operator domain of `augserve.operators`.

While a network is traced, each layer stands for the node

    y = augserve::NAME(x, weight, bias, running_mean, running_spread[, group, tracked_weight[, exponents]])

group and tracked_weight are inputs of the graph; without them the node means tracked statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from augserve.norms import StatisticsNorm
from augserve.operators import DOMAIN, VERSION


def norm_node(layer: StatisticsNorm, x: Tensor, steering: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return the layer's node applied to x (N, C, *spatial).

    Args:
        layer: what is traced.
        x: its input.
        steering: group int64 (N,) and tracked_weight float (N,); None: tracked statistics.
    """
    name, attributes = layer.operator()
    ones, zeros = x.new_ones(layer.num_features), x.new_zeros(layer.num_features)
    given = (layer.weight, layer.bias, layer.running_mean, getattr(layer, layer.spread))
    parameters = [
        default if value is None else value
        for value, default in zip(given, (ones, zeros, zeros, ones), strict=True)
    ]
    inputs = (x, *parameters, *(steering or ()))
    exponents = layer.exponents()
    if exponents is not None and steering is not None:
        inputs = (*inputs, exponents.detach().to(torch.float32))
    y: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}", inputs, {**attributes}, dtype=x.dtype, shape=x.shape, version=VERSION
    )
    return y
