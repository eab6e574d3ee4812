"""Turning the BatchNorm layers of any network into ours, in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from augserve.errors import ConfigurationError, unknown_choice
from augserve.norms.aug_norm import AugNorm1d, AugNorm2d, AugNorm3d
from augserve.norms.base import StatisticsNorm
from augserve.norms.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from augserve.norms.robust_norm import RobustNorm1d, RobustNorm2d, RobustNorm3d
from augserve.statistics import Statistics

_TARGETS: dict[str, tuple[type[StatisticsNorm], type[StatisticsNorm], type[StatisticsNorm]]] = {
    "aug": (AugNorm1d, AugNorm2d, AugNorm3d),
    "batch": (BatchNorm1d, BatchNorm2d, BatchNorm3d),
    "robust": (RobustNorm1d, RobustNorm2d, RobustNorm3d),
}
_SOURCES: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class ConversionReport:
    """What `convert_norm` did.

    Args:
        converted: names of the layers that were replaced.
        kept_statistics: whether the new layers hold the old running statistics. RobustNorm's denominator cannot
            be had from a variance: its layers start anew and use batch statistics until trained.
    """

    norm: str
    converted: tuple[str, ...]
    kept_statistics: bool

    def __str__(self) -> str:
        kept = "kept" if self.kept_statistics else "started anew (mode 'batch' until trained)"
        return f"{len(self.converted)} layers to {self.norm}; running statistics {kept}"


def convert_norm(module: nn.Module, norm: str = "aug", **options: Any) -> ConversionReport:
    """Replace every BatchNorm1d/2d/3d inside `module`, in place.

    Weights (the very same parameters, so that an optimizer goes on), running statistics, the training flag,
    devices, dtypes and hooks are kept. Converting to "batch", or to "aug" with phi=2, changes no output.

    Args:
        module: any network with torch.nn.BatchNorm layers; it must not be such a layer itself.
        norm: "aug", "batch" or "robust".
        **options: of the new layer: phi (aug), p and track (robust).

    Returns:
        What was converted.

    Raises:
        ConfigurationError: an unknown norm or option, nothing to convert, or a layer that cannot be converted
            (SyncBatchNorm and other subclasses), named; nothing is changed.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> convert_norm(network, "aug", phi=1.5).converted
        ('1',)
    """
    if norm not in _TARGETS:
        raise unknown_choice("norm", norm, _TARGETS)
    if isinstance(module, TorchBatchNorm):
        raise ConfigurationError("the module is a BatchNorm itself: put it inside another module and convert that")
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, TorchBatchNorm)]
    for name, layer in layers:
        if type(layer) not in _SOURCES:
            kind = type(layer).__name__
            raise ConfigurationError(f"layer {name!r}: cannot convert {kind}; replace it by nn.BatchNorm first")
    if not layers:
        raise ConfigurationError("found no torch.nn.BatchNorm layer to convert")
    replacements = {id(layer): _replacement(layer, norm, options) for _, layer in layers}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # named_children leaves out the second use of a shared layer
            if id(child) in replacements:
                parent._modules[name] = replacements[id(child)]
    return ConversionReport(norm, tuple(name for name, _ in layers), norm != "robust")


def _replacement(old: TorchBatchNorm, norm: str, options: dict[str, Any]) -> StatisticsNorm:
    kind = _TARGETS[norm][_SOURCES.index(type(old))]
    like = old.weight if old.affine else old.running_mean
    place: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
    arguments = {
        "eps": old.eps,
        "momentum": old.momentum,
        "affine": old.affine,
        "track_running_stats": old.track_running_stats,
    }
    try:
        new = kind(old.num_features, **{**arguments, **options}, **place)
    except TypeError:
        raise ConfigurationError(f"norm {norm!r} does not take all of the options {', '.join(options)}") from None
    if old.affine:
        new.weight, new.bias = old.weight, old.bias
    if old.running_mean is not None and new.track_running_stats:
        with torch.no_grad():
            new._buffer("running_mean").copy_(old.running_mean)
            if norm == "robust" or old.running_var is None or old.num_batches_tracked is None:
                new.statistics = Statistics("batch")
            else:
                new._buffer("running_var").copy_(old.running_var)
                new._buffer("num_batches_tracked").copy_(old.num_batches_tracked)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        getattr(new, hooks).update(getattr(old, hooks))
    return new.train(old.training)
