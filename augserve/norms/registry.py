"""The norms by name, as `--norm`, `build_model` and `convert_norm` take them.

Training normalizes with batch statistics whatever the mode, so names that differ only in the mode that inference
uses by default (batch and batch-untracked, robust and robust-tracked) are one network: all keep running
statistics. The other names are baselines without statistics modes: each row is normalized by itself, or not at all,
or the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from augserve.errors import ConfigurationError, unknown_choice
from augserve.norms.aug_norm import AugNorm, AugNorm1d, AugNorm2d, AugNorm3d
from augserve.norms.base import StatisticsNorm
from augserve.norms.baselines import normalize_weights
from augserve.norms.batch_norm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from augserve.norms.robust_norm import RobustNorm, RobustNorm1d, RobustNorm2d, RobustNorm3d
from augserve.statistics import Mode, Statistics


@dataclass(frozen=True)
class Family:
    """A norm with statistics modes: its layers by rank, its default mode, its fixed and its free options."""

    layers: tuple[type[StatisticsNorm], ...]  # 1d, 2d, 3d, any
    mode: Mode = "tracked"
    fixed: tuple[tuple[str, Any], ...] = ()
    options: tuple[str, ...] = ()


_AUG = (AugNorm1d, AugNorm2d, AugNorm3d, AugNorm)
_BATCH = (BatchNorm1d, BatchNorm2d, BatchNorm3d, BatchNorm)
_ROBUST = (RobustNorm1d, RobustNorm2d, RobustNorm3d, RobustNorm)

FAMILIES = {
    "aug": Family(_AUG, options=("phi", "learn_phi", "phi_min", "phi_max", "warm_start")),
    "aug-learned": Family(_AUG, fixed=(("learn_phi", True),), options=("phi", "phi_min", "phi_max", "warm_start")),
    "batch": Family(_BATCH),
    "batch-untracked": Family(_BATCH, "batch"),
    "median": Family(_AUG, fixed=(("phi", 1.0),)),
    "robust": Family(_ROBUST, "batch", options=("p", "track")),
    "robust-tracked": Family(_ROBUST, options=("p", "track")),
}

COMMON_OPTIONS = ("eps", "momentum", "affine")


def _instance(num_features: int, eps: float = 1e-5, affine: bool = True) -> nn.Module:
    return nn.InstanceNorm2d(num_features, eps=eps, affine=affine)


def _layer(num_features: int, eps: float = 1e-5, affine: bool = True) -> nn.Module:
    return nn.GroupNorm(1, num_features, eps=eps, affine=affine)


def _group(num_features: int, num_groups: int = 8, eps: float = 1e-5, affine: bool = True) -> nn.Module:
    if num_groups < 1:
        raise ConfigurationError(f"num_groups must be at least 1; got {num_groups}")
    return nn.GroupNorm(math.gcd(num_groups, num_features), num_features, eps=eps, affine=affine)


def _nothing(num_features: int) -> nn.Module:
    return nn.Identity()


_BASELINES: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "group": (_group, ("num_groups", "eps", "affine")),
    "instance": (_instance, ("eps", "affine")),
    "layer": (_layer, ("eps", "affine")),
    "none": (_nothing, ()),
}
_WEIGHTS = {"oni": ("num_steps", "form", "eps"), "spectral": ("n_power_iterations", "eps")}


def list_norms() -> tuple[str, ...]:
    """Return the names of the norms."""
    return tuple(sorted((*FAMILIES, *_BASELINES, *_WEIGHTS)))


def norm_factory(name: str, options: dict[str, Any] | None = None) -> Callable[[int], nn.Module]:
    """Return a function from num_features to a norm layer for images.

    Args:
        name: one of `list_norms`. For oni and spectral the layer does nothing: `normalize_model` does the rest.
        options: of the layer's constructor: phi for aug; p and track for robust; num_groups for group (8; the
            greatest divisor that it shares with the channels is taken); eps, momentum, affine where it has them.

    Raises:
        ConfigurationError: an unknown name, or an option that the norm does not take.

    Example:
        >>> norm_factory("aug", {"phi": 1.25})(16).phi
        1.25
    """
    options = dict(options or {})
    if name in _WEIGHTS:
        check_options(name, options, _WEIGHTS[name])
        return _nothing
    if name in _BASELINES:
        baseline, known = _BASELINES[name]
        check_options(name, options, known)
        if name != "none":
            baseline(1, **options)  # a wrong value is an error here
        return lambda num_features: baseline(num_features, **options)
    family = family_of(name, options)
    build = family.layers[1]
    arguments = {**dict(family.fixed), **options, "track_running_stats": True}
    build(1, **arguments)  # a wrong value is an error here, not at the first layer of a network

    def layer(num_features: int) -> nn.Module:
        made = build(num_features, **arguments)
        made.statistics = Statistics(family.mode)
        return made

    return layer


def normalize_model(model: nn.Module, name: str, options: dict[str, Any] | None = None) -> None:
    """Normalize the weights of a network built with this norm, in place, where the norm is one of weights.

    Every convolution and linear layer but the last linear one, which gives the logits their scale.

    Raises:
        ConfigurationError: an option that the norm does not take; a layer whose weight is parametrized already.
    """
    if name not in _WEIGHTS:
        return
    linear = [module_name for module_name, module in model.named_modules() if isinstance(module, nn.Linear)]
    normalize_weights(model, name, exclude=tuple(linear[-1:]), **(options or {}))  # type: ignore[arg-type]


def family_of(name: str, options: dict[str, Any]) -> Family:
    """Return the norm with statistics modes of this name, which takes these options."""
    if name not in FAMILIES:
        raise unknown_choice("norm", name, list_norms())
    family = FAMILIES[name]
    check_options(name, options, (*family.options, *COMMON_OPTIONS))
    return family


def check_options(name: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raise ConfigurationError for the first option that the norm does not take."""
    for option in options:
        if option not in known:
            takes = ", ".join(known) or "no option"
            raise ConfigurationError(f"norm {name!r} does not take {option!r}; it takes {takes}")
