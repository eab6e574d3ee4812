"""The way of one batch through a layer with statistics: a ladder, whose first step that fits is taken.

    traced       an exporter wants a node in the layer's place
    at once      training, alone, no groups: one call of a native kernel does everything
    no rows      nothing to take statistics of
    training     statistics of the batch (of each group: ghost batch normalization), running statistics moved
    groups       inference, each group of rows by what it says: by one call of a kernel, else one by one
    tracked      running statistics: an affine map
    batch        the batch's own statistics
    blend        both, weighted

Statistics of rows come from the one function over the kernels (`function`), or by the definition in plain torch
(`layer.normalize_batch`) where the layer has formulas that no kernel knows, where several processes share a batch,
and where a transform or a compiler wants to see operations.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, distributed

from augserve.errors import StatisticsError
from augserve.norms.function import ended, has_fast_kernel, normalize, plain, runs_at_once, takes, train_at_once
from augserve.norms.grouping import Grouping, weighted
from augserve.norms.kernels.dispatch import has_kernel, norm_grouped
from augserve.norms.kernels.reference import spread_of
from augserve.norms.kernels.spec import Ending, Groups, Moving, Spec
from augserve.norms.processes import Processes, ProcessGroup
from augserve.norms.reduction import Local, Reduction, along_channels, reduced_dims
from augserve.norms.torch_private import held
from augserve.norms.tracing import tracer
from augserve.statistics import Statistics


class _Layer(Protocol):
    """What the ladder asks of a layer; `augserve.norms.base.StatisticsNorm` says what each means."""

    training: bool
    statistics: Statistics
    grouping: Grouping | None
    process_group: ProcessGroup | Literal[False] | None
    num_features: int
    momentum: float | None
    track_running_stats: bool
    spread: str
    weight: Tensor | None
    bias: Tensor | None

    def group_statistics(self, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor]: ...
    def normalize_batch(self, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor, Tensor]: ...
    def divisor(self, spread: Tensor) -> Tensor: ...
    def unbiased(self, spread: Tensor, count: int) -> Tensor: ...
    def kernel_spec(self) -> Spec | None: ...
    def exponents(self) -> Tensor | None: ...
    def start(self) -> Tensor | None: ...
    def running(self) -> tuple[Tensor, Tensor]: ...
    def get_buffer(self, target: str) -> Tensor: ...


def forward(layer: _Layer, x: Tensor, ending: Ending) -> Tensor:
    """Return ending(norm(x)) for a layer and x (N, C, *spatial) of its channels."""
    if layer.training and (y := _train_at_once(layer, x, ending)) is not None:
        return y
    if torch.onnx.is_in_onnx_export() and (who := tracer()) is not None:
        y = who.norm(layer, x)
    elif x.shape[0] == 0 and not synchronised(layer):
        y = _without_rows(layer, x)
    elif layer.training:
        y = _train(layer, x)
    elif layer.grouping is not None:
        y = _infer_groups(layer, x, layer.grouping)
    else:
        y = _infer(layer, x, layer.statistics)
    return ended(y, ending)


def synchronised(layer: _Layer) -> bool:
    """Return whether a batch is that of all processes: in training, with a process group, where there are any."""
    if not layer.training or layer.process_group is False:
        return False
    return distributed.is_available() and distributed.is_initialized()


# Training.


def _train_at_once(layer: _Layer, x: Tensor, ending: Ending) -> Tensor | None:
    """Do all of a training step's work in one call of a native kernel, or return None where that cannot be."""
    if layer.grouping is not None or layer.process_group is not False or not runs_at_once(x):
        return None
    spec = layer.kernel_spec()
    if spec is None or not has_kernel(spec) or x.shape[0] == 0:
        return None
    moving, count = None, x.numel() // x.shape[1]
    if count <= 1:
        _require_values(layer, count, x)
    parameters, buffers = held(layer)  # type: ignore[arg-type]
    if layer.track_running_stats:
        center, spread, batches = buffers["running_mean"], buffers[layer.spread], buffers["num_batches_tracked"]
        if layer.momentum is None or center is None or spread is None or batches is None:
            return None
        if center.dtype != torch.float32 or spread.dtype != torch.float32 or center.device != x.device:
            return None
        batches.add_(1)
        moving = Moving(center, spread, layer.momentum, count / (count - 1))
    given = parameters["weight"], parameters["bias"], layer.exponents(), layer.start()
    return train_at_once(x, *given, spec, moving, ending)


def _train(layer: _Layer, x: Tensor) -> Tensor:
    grouping = layer.grouping
    if grouping is not None and synchronised(layer):
        raise StatisticsError(
            f"{type(layer).__name__}: row groups and synchronised statistics exclude each other in training; "
            "leave out `group`, or call synchronize_statistics(module, False)"
        )
    parts = [x] if grouping is None else [x[rows] for rows in grouping.rows(x.shape[0])]
    outputs, updates = [], []
    for part in parts:
        over = _reduction(layer, part)
        if isinstance(over, Processes) and over.total == 0:  # no process has a row
            return _without_rows(layer, x)
        count = _values_per_channel(layer, part, over)
        y, center, spread = _own_statistics(layer, part, over)
        outputs.append(y)
        updates.append((part.shape[0] / max(x.shape[0], 1), center, layer.unbiased(spread, count)))
    if grouping is None:
        _move_running(layer, *updates[0][1:])
        return outputs[0]
    shares, centers, spreads = zip(*updates, strict=True)
    _move_running(layer, weighted(shares, centers), weighted(shares, spreads))
    return grouping.join(outputs)


@torch.no_grad()
def _move_running(layer: _Layer, center: Tensor, spread: Tensor) -> None:
    """Move the running statistics toward those of a batch: of several groups, their row-weighted mean."""
    if not layer.track_running_stats:
        return
    count = layer.get_buffer("num_batches_tracked")
    count.add_(1)
    for running, batch in zip(layer.running(), (center, spread), strict=True):
        cumulative = count.double().reciprocal().to(running.dtype)
        running.lerp_(batch.to(running.dtype), cumulative if layer.momentum is None else layer.momentum)


# Inference.


def _infer_groups(layer: _Layer, x: Tensor, grouping: Grouping) -> Tensor:
    """Normalize each group by itself: all at once by a kernel where no gradient is wanted, else one by one."""
    spec = None if torch.is_grad_enabled() else layer.kernel_spec()
    rows_of_groups = grouping.rows(x.shape[0])
    if spec is None or not has_fast_kernel(x, spec):
        parts = zip(rows_of_groups, grouping.statistics, strict=True)
        return grouping.join([_infer(layer, x[rows], statistics) for rows, statistics in parts])
    for rows, statistics in zip(grouping.sizes, grouping.statistics, strict=True):
        if statistics.fixed_weight != 1.0:
            _require_values(layer, rows * (x.numel() // max(x.shape[0] * x.shape[1], 1)), x)
    return _by_kernel(layer, x, spec, grouping.groups, grouping.tracked_weight)


def _infer(layer: _Layer, x: Tensor, statistics: Statistics) -> Tensor:
    """Normalize rows of one group."""
    fixed = statistics.fixed_weight
    if fixed == 0.0:
        over = _reduction(layer, x)
        _values_per_channel(layer, x, over)
        return _own_statistics(layer, x, over)[0]
    center, spread = layer.running()
    weight = 1.0 if fixed == 1.0 else statistics.weight(x.shape[0])
    if weight != 1.0:
        _require_values(layer, x.numel() // x.shape[1], x)
    if not torch.is_grad_enabled() and runs_at_once(x):
        spec = layer.kernel_spec()
        if spec is not None and has_kernel(spec):
            return _by_kernel(layer, x, spec, None, torch.full((1,), weight))
    if fixed != 1.0:
        own_center, own_spread = layer.group_statistics(x, _reduction(layer, x))
        center = weight * center + (1 - weight) * own_center
        spread = weight * spread + (1 - weight) * own_spread
    return affine(layer, x, center, layer.divisor(spread))


def _by_kernel(layer: _Layer, x: Tensor, spec: Spec, groups: Groups | None, tracked_weight: Tensor) -> Tensor:
    running = layer.running() if layer.track_running_stats else (None, None)
    parameters = map(plain, (layer.weight, layer.bias, layer.exponents(), *running))
    y: Tensor = norm_grouped(x, *parameters, *(groups or (None, None)), tracked_weight, *spec)
    return y


# What the steps share.


def _own_statistics(layer: _Layer, x: Tensor, over: Reduction) -> tuple[Tensor, Tensor, Tensor]:
    """Return y with x's own statistics, and these, without gradient: by the one function or by the definition."""
    spec = None if isinstance(over, Processes) else layer.kernel_spec()
    if spec is None or not takes(x, spec):
        return layer.normalize_batch(x, over)
    y, statistics = normalize(x, layer.weight, layer.bias, layer.exponents(), layer.start(), spec)
    return y, statistics[0], spread_of(statistics[1], spec)


def affine(layer: _Layer, x: Tensor, center: Tensor, divisor: Tensor) -> Tensor:
    """Return gamma * (x - center) / divisor + beta, computed in float32 or better."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    scale = divisor.to(dtype).reciprocal()
    if layer.weight is not None:
        scale = scale * layer.weight.to(dtype)
    shift = -center.to(dtype) * scale
    if layer.bias is not None:
        shift = shift + layer.bias.to(dtype)
    y = torch.addcmul(along_channels(shift, x), x.to(dtype), along_channels(scale, x))
    return y.to(x.dtype)


def _without_rows(layer: _Layer, x: Tensor) -> Tensor:
    """Return the answer to an empty batch, with a gradient of 0 for every parameter; no statistics come of it."""
    if layer.grouping is not None:
        layer.grouping.rows(0)
    zeros = torch.zeros(layer.num_features, device=x.device)
    y = affine(layer, x, zeros, zeros + 1)
    exponents = layer.exponents()
    return y if exponents is None else y + (0 * along_channels(exponents, x)).to(y.dtype)


def _reduction(layer: _Layer, x: Tensor) -> Reduction:
    """Return how the values of a channel are summed up: in this batch, or over all processes in training."""
    dims = reduced_dims(x)
    return Processes.over(x, dims, layer.process_group) if synchronised(layer) else Local(dims)


def _values_per_channel(layer: _Layer, x: Tensor, over: Reduction) -> int:
    """Return how many values give a channel's statistics, or raise StatisticsError where it is one."""
    count = over.count(x)
    assert not isinstance(count, Tensor)  # noqa: S101 - counts of these reductions are numbers
    _require_values(layer, count, x)
    return count


def _require_values(layer: _Layer, count: int, x: Tensor) -> None:
    if count <= 1:
        raise StatisticsError(
            f"{type(layer).__name__} expected more than 1 value per channel for statistics of its own; "
            f"got input size {tuple(x.shape)}; use larger groups or tracked statistics"
        )
