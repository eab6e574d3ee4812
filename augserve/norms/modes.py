"""Setting the statistics of every norm layer of a network: for good, or for the length of a `with`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

from augserve.errors import StatisticsError
from augserve.norms import library
from augserve.norms.base import StatisticsNorm
from augserve.norms.grouping import make_grouping
from augserve.norms.kernels.spec import AUG
from augserve.norms.processes import ProcessGroup, check_group
from augserve.norms.torch_private import BATCH_NORMS
from augserve.statistics import Statistics


def norm_layers(module: nn.Module) -> dict[str, StatisticsNorm]:
    """Return the norm layers of a network by name, in the order of `named_modules`."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, StatisticsNorm)}


def fast_in_channels_last(layer: StatisticsNorm) -> bool:
    """Return whether images whose channels lie side by side are normalized as fast as others.

    BatchNorm's, RobustNorm's and AugNorm's with phi = 1.5 are: by a native kernel where AVX-512 is there, else
    BatchNorm's by torch. Other exponents are fast forward alone.
    """
    spec = layer.kernel_spec()
    if spec is None or layer.exponents() is not None:
        return False
    if spec.kind == AUG and spec.exponent != 1.5:
        return spec.exponent == 2.0
    return library.fast_in_channels_last()


def set_statistics(module: nn.Module, statistics: Statistics) -> None:
    """Make `statistics` what every norm layer of the network uses at inference.

    Raises:
        StatisticsError: a layer keeps no running statistics and the mode needs them, or a torch.nn.BatchNorm knows
            no mode but "tracked"; nothing is changed.

    Example:
        >>> from augserve.norms import BatchNorm2d
        >>> layer = nn.Sequential(BatchNorm2d(3))
        >>> set_statistics(layer, Statistics("batch"))
    """
    layers = norm_layers(module)
    _check(module, layers, [statistics])
    for layer in layers.values():
        layer.statistics = statistics


@contextmanager
def use_statistics(
    module: nn.Module, statistics: Statistics | Sequence[Statistics], group: Tensor | None = None
) -> Iterator[None]:
    """Use `statistics`, with statistics groups where given, inside a `with` block; then put back what was.

    Args:
        module: the network.
        statistics: for all rows, or one for each group.
        group: int64 (N,), the group 0..G-1 of each row of the batches run inside; None: one group.

    Raises:
        StatisticsError: running statistics that a layer does not keep, a torch.nn.BatchNorm, which knows no mode
            but "tracked", or an impossible grouping.

    Example:
        >>> import torch
        >>> from augserve.norms import BatchNorm2d
        >>> layer = BatchNorm2d(3).eval()
        >>> with use_statistics(layer, Statistics("batch"), group=torch.tensor([0, 0, 1, 1])):
        ...     y = layer(torch.randn(4, 3, 2, 2))
    """
    layers = norm_layers(module)
    each = [statistics] if isinstance(statistics, Statistics) else list(statistics)
    _check(module, layers, each)
    if group is None and len(each) != 1:
        raise StatisticsError(f"expected one Statistics without `group`; got {len(each)}")
    grouping = None if group is None else make_grouping(group, statistics)
    before = [(layer, layer.statistics, layer.grouping) for layer in layers.values()]
    try:
        for layer in layers.values():
            layer.statistics, layer.grouping = each[0], grouping
        yield
    finally:
        for layer, old_statistics, old_grouping in before:
            layer.statistics, layer.grouping = old_statistics, old_grouping


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every module into eval mode inside a `with` block, then back into the mode it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def synchronize_statistics(
    module: nn.Module, process_group: ProcessGroup | Literal[False] = None
) -> tuple[str, ...]:
    """Make every norm layer take the statistics of training over all processes, as nn.SyncBatchNorm does.

    Args:
        module: the network, the same in every process.
        process_group: of torch.distributed; None: all processes. False: each process by itself again.

    Returns:
        The names of the layers.

    Raises:
        StatisticsError: torch.distributed is not initialised, or this process is not in the group.

    Example:
        >>> from augserve.norms import AugNorm2d
        >>> synchronize_statistics(nn.Sequential(AugNorm2d(3)), False)
        ('0',)
    """
    if process_group is not False:
        check_group(process_group)
    layers = norm_layers(module)
    for layer in layers.values():
        layer.process_group = process_group
    return tuple(layers)


def _check(module: nn.Module, layers: dict[str, StatisticsNorm], statistics: Sequence[Statistics]) -> None:
    for one in statistics:
        if not isinstance(one, Statistics):
            raise StatisticsError(f"expected Statistics, such as Statistics('batch'); got {one!r}")
    if any(s.mode != "tracked" for s in statistics):
        for name, other in module.named_modules():
            if isinstance(other, BATCH_NORMS):
                raise StatisticsError(
                    f"layer {name!r} (torch.nn.{type(other).__name__}) knows no statistics modes: convert the "
                    "network first with augserve.norms.convert_norm(model, 'batch')"
                )
    if any(s.mode != "batch" for s in statistics):
        for name, layer in layers.items():
            if not layer.track_running_stats:
                raise StatisticsError(
                    f"layer {name or type(layer).__name__!r} keeps no running statistics "
                    "(track_running_stats=False): use the mode 'batch', or build it with track_running_stats=True"
                )
