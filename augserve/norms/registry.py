"""The norms by name, as `--norm` and `build_model` take them.

Training normalizes with batch statistics whatever the mode, so names that differ only in the mode that inference
uses by default (batch and batch-untracked, robust and robust-tracked) are one network: all keep running
statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from augserve.errors import ConfigurationError, unknown_choice
from augserve.norms.aug_norm import AugNorm2d
from augserve.norms.base import StatisticsNorm
from augserve.norms.batch_norm import BatchNorm2d
from augserve.norms.robust_norm import RobustNorm2d
from augserve.statistics import Mode, Statistics


@dataclass(frozen=True)
class _Entry:
    layer: type[StatisticsNorm]
    mode: Mode = "tracked"
    fixed: tuple[tuple[str, float], ...] = ()
    options: tuple[str, ...] = ()


_NORMS = {
    "aug": _Entry(AugNorm2d, options=("phi",)),
    "batch": _Entry(BatchNorm2d),
    "batch-untracked": _Entry(BatchNorm2d, "batch"),
    "median": _Entry(AugNorm2d, fixed=(("phi", 1.0),)),
    "none": None,
    "robust": _Entry(RobustNorm2d, "batch", options=("p", "track")),
    "robust-tracked": _Entry(RobustNorm2d, options=("p", "track")),
}

COMMON_OPTIONS = ("eps", "momentum", "affine")


def list_norms() -> tuple[str, ...]:
    """Return the names of the norms."""
    return tuple(_NORMS)


def norm_factory(name: str, options: dict[str, Any] | None = None) -> Callable[[int], nn.Module]:
    """Return a function from num_features to a norm layer for images.

    Args:
        name: one of `list_norms`.
        options: of the layer's constructor: phi for aug; p and track for robust; eps, momentum, affine for all.

    Raises:
        ConfigurationError: an unknown name, or an option that the norm does not take.

    Example:
        >>> norm_factory("aug", {"phi": 1.25})(16).phi
        1.25
    """
    options = dict(options or {})
    if name not in _NORMS:
        raise unknown_choice("norm", name, _NORMS)
    entry = _NORMS[name]
    known = (*(entry.options if entry else ()), *(COMMON_OPTIONS if entry else ()))
    for option in options:
        if option not in known:
            takes = ", ".join(known) or "no option"
            raise ConfigurationError(f"norm {name!r} does not take {option!r}; it takes {takes}")
    if entry is None:
        return lambda num_features: nn.Identity()
    arguments = {**dict(entry.fixed), **options, "track_running_stats": True}
    entry.layer(1, **arguments)  # a wrong value is an error here, not at the first layer of a network

    def build(num_features: int) -> nn.Module:
        layer = entry.layer(num_features, **arguments)
        layer.statistics = Statistics(entry.mode)
        return layer

    return build
