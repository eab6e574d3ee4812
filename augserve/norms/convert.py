"""Turning the layers of any network into ours, in place: BatchNorm layers, and convolutions into ConvNorm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from augserve.errors import ConfigurationError, unknown_choice
from augserve.norms.base import StatisticsNorm
from augserve.norms.baselines import has_plain_weight
from augserve.norms.conv_norm import ConvNorm2d
from augserve.norms.registry import FAMILIES, Family, check_options, family_of
from augserve.norms.torch_private import BATCH_NORMS, take_hooks
from augserve.statistics import Statistics

Subclasses = Literal["error", "skip", "convert"]
Old = Any  # a BatchNorm of torch, or a StatisticsNorm

CONV = "conv"
_CONV_OPTIONS = ("eps", "affine", "affine_position", "bias_position")
# The layers of torch by rank, as the layers of a `Family`; SyncBatchNorm takes any.
_RANKS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class ConversionReport:
    """What `convert_norm` did.

    Args:
        norm: the norm it converted to.
        converted: names of the layers that were replaced.
        kept_statistics: whether the new layers hold the old running statistics. RobustNorm's denominator cannot
            be had from a variance, nor a variance from it: such layers start anew and use batch statistics until
            they are trained or calibrated and `set_statistics` is called.
        skipped: names of the subclasses that were left as they are.
        changes: for each converted layer its name, the class it was, and the class it is.
    """

    norm: str
    converted: tuple[str, ...]
    kept_statistics: bool
    skipped: tuple[str, ...] = ()
    changes: tuple[tuple[str, str, str], ...] = ()

    def __str__(self) -> str:
        kept = "kept" if self.kept_statistics else "started anew (mode 'batch' until trained)"
        skipped = f"; left alone: {', '.join(self.skipped)}" if self.skipped else ""
        statistics = "" if self.norm == CONV else f"; running statistics {kept}"
        return f"{len(self.converted)} layers to {self.norm}{statistics}{skipped}"


def convert_norm(
    module: nn.Module, norm: str = "aug", *, subclasses: Subclasses = "error", **options: Any
) -> ConversionReport:
    """Replace every BatchNorm inside `module` by another norm, or every Conv2d by ConvNorm2d, in place.

    Weights (the very same parameters, so that an optimizer goes on), running statistics, the training flag,
    devices, dtypes and hooks are kept; attributes of your own on the layers are not. Converting to "batch", or to
    "aug" with phi=2, changes no output.

    nn.BatchNorm1d/2d/3d and the norms of augserve with running statistics are converted. nn.SyncBatchNorm becomes
    a layer of any rank with statistics over the processes of its group. Other subclasses may compute anything, so
    they are refused unless `subclasses` says otherwise.

    Args:
        module: any network that holds such layers; it must not be such a layer itself.
        norm: "aug", "aug-learned", "batch", "batch-untracked", "median", "robust", "robust-tracked"; or "conv":
            nn.Conv2d to ConvNorm2d.
        subclasses: what to do with a user's subclass of BatchNorm (or Conv2d): "error", "skip" it, or "convert" it
            as if it were the class of torch that it extends, dropping what it adds.
        **options: of the new layers: phi (aug), phi_min and phi_max (aug-learned), p and track (robust), eps,
            momentum, affine; affine_position, bias_position and affine (conv).

    Returns:
        What was converted.

    Raises:
        ConfigurationError: an unknown norm or option, nothing to convert, or a layer that cannot be converted,
            named; nothing is changed.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> convert_norm(network, "aug", phi=1.5).converted
        ('1',)
    """
    if norm not in (*FAMILIES, CONV):
        raise unknown_choice("norm to convert to", norm, (*FAMILIES, CONV))
    if subclasses not in get_args(Subclasses):
        raise unknown_choice("treatment of subclasses", subclasses, get_args(Subclasses))
    replace: Callable[[str, Any], tuple[nn.Module, bool]]
    if norm == CONV:
        check_options(norm, options, _CONV_OPTIONS)
        sources: tuple[type[nn.Module], ...] = (nn.Conv2d,)
        done: tuple[type[nn.Module], ...] = (ConvNorm2d,)
        replace = _to_conv_norm(options)
    else:
        sources, done = (*BATCH_NORMS, StatisticsNorm), ()
        replace = _to_family(norm, family_of(norm, options), options)
    if isinstance(module, sources):
        kind = type(module).__name__
        raise ConfigurationError(f"the module is a {kind} itself: put it inside another module and convert that")

    layers: dict[str, Any] = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, sources) and not isinstance(layer, done)
    }
    skipped = [name for name, layer in layers.items() if not _is_known(layer)] if subclasses != "convert" else []
    if skipped and subclasses == "error":
        kind = type(layers[skipped[0]]).__name__
        raise ConfigurationError(
            f"layer {skipped[0]!r}: cannot convert {kind}, which may compute something else than the class it "
            "extends; pass subclasses='convert' to treat it as that class, or 'skip' to leave it"
        )
    layers = {name: layer for name, layer in layers.items() if name not in skipped}
    if not layers:
        raise ConfigurationError(
            f"found no {'nn.Conv2d' if norm == CONV else 'torch.nn.BatchNorm'} layer to convert"
        )
    new = {id(layer): replace(name, layer) for name, layer in layers.items()}
    for path, child in list(module.named_modules(remove_duplicate=False)):  # a shared layer has several
        if id(child) in new:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, new[id(child)][0])
    changes = tuple(
        (name, type(layer).__name__, type(new[id(layer)][0]).__name__) for name, layer in layers.items()
    )
    return ConversionReport(norm, tuple(layers), all(kept for _, kept in new.values()), tuple(skipped), changes)


def _is_known(layer: nn.Module) -> bool:
    ours = {kind for family in FAMILIES.values() for kind in family.layers}
    return type(layer) in (*_RANKS, nn.Conv2d, *ours)


def _to_family(norm: str, family: Family, options: dict[str, Any]) -> Callable[[str, Old], tuple[nn.Module, bool]]:
    """Return the function from a layer, with its name, to the family's, and whether that holds its statistics."""

    def replace(name: str, old: Old) -> tuple[nn.Module, bool]:
        if isinstance(old, nn.modules.lazy.LazyModuleMixin):
            raise ConfigurationError(
                f"layer {name!r}: a {type(old).__name__} has no shape yet; run a batch through the network first"
            )
        if old.affine and not has_plain_weight(old):
            raise ConfigurationError(
                f"layer {name!r}: its weight is parametrized; remove the parametrization first"
            )
        arguments = {
            "eps": old.eps,
            "momentum": old.momentum,
            "affine": old.affine,
            "track_running_stats": _is_tracked(old),
            **dict(family.fixed),
            **options,
        }
        new = family.layers[_rank(old)](old.num_features, **arguments, **_place(old))
        if new.affine and old.affine:
            new.weight, new.bias = old.weight, old.bias
        kept = _keep_statistics(old, new)
        if kept and new.track_running_stats:
            new.statistics = Statistics(family.mode)
        elif new.track_running_stats:
            new.statistics = Statistics("batch")
        if isinstance(old, (nn.SyncBatchNorm, StatisticsNorm)):
            new.process_group = old.process_group
        return _dressed_as(new, old), kept

    return replace


def _rank(old: Old) -> int:
    """Return the index, among the layers of a family, of the one with the rank of `old`."""
    for kinds in (_RANKS, *(family.layers for family in FAMILIES.values())):
        for rank, kind in enumerate(kinds):
            if isinstance(old, kind):
                return rank
    return len(_RANKS) - 1


def _is_tracked(old: Old) -> bool:
    """Return whether evaluation uses running statistics: torch asks for the buffers, not for the flag."""
    if isinstance(old, StatisticsNorm):
        return old.track_running_stats
    return old.running_mean is not None and old.running_var is not None


def _place(old: nn.Module) -> dict[str, Any]:
    like = next((value for value in (*old.parameters(), *old.buffers()) if value.is_floating_point()), None)
    return {} if like is None else {"device": like.device, "dtype": like.dtype}


@torch.no_grad()
def _keep_statistics(old: Old, new: StatisticsNorm) -> bool:
    """Give the running statistics of `old` to `new`; return whether nothing was lost."""
    if not _is_tracked(old) or old.running_mean is None or not new.track_running_stats:
        return True
    new.running_mean = old.running_mean.clone()  # of its own dtype, which may be wider than the weights'
    spread, count = getattr(old, new.spread, None), old.num_batches_tracked
    if spread is None:
        return False
    count = torch.zeros_like(new.get_buffer("num_batches_tracked")) if count is None else count
    if isinstance(old, StatisticsNorm) and old.spread != "running_var" and int(count) == 0:
        return False  # a range that has not seen data; the mean may come from a BatchNorm
    setattr(new, new.spread, spread.clone())
    new.get_buffer("num_batches_tracked").copy_(count)
    return True


def _to_conv_norm(options: dict[str, Any]) -> Callable[[str, nn.Conv2d], tuple[nn.Module, bool]]:
    """Return the function from a convolution, with its name, to a ConvNorm2d with its weight and bias."""

    def replace(name: str, old: nn.Conv2d) -> tuple[nn.Module, bool]:
        if not has_plain_weight(old):
            raise ConfigurationError(f"layer {name!r}: its weight is parametrized, or has no shape yet")
        new = ConvNorm2d(
            old.in_channels,
            old.out_channels,
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            old.dilation,  # type: ignore[arg-type]
            old.groups,
            old.bias is not None,
            padding_mode=old.padding_mode,
            **options,
            **_place(old),
        )
        new.weight, new.bias = old.weight, old.bias
        return _dressed_as(new, old), True

    return replace


def _dressed_as(new: nn.Module, old: nn.Module) -> nn.Module:
    """Give `new` the hooks, whose handles go on working, and the training flag of `old`."""
    take_hooks(new, old)
    return new.train(old.training)
