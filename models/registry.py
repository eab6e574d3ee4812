"""The models by name, as `--model` takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from augserve.errors import unknown_choice
from augserve.models.resnet_cifar import NormFactory, ResNetCifar
from augserve.norms import convert_norm, norm_factory, normalize_model

_MODELS: dict[str, Callable[[int, int, NormFactory], nn.Module]] = {
    "resnet20": lambda classes, channels, norm: ResNetCifar(20, classes, channels, norm),
}


def list_models() -> tuple[str, ...]:
    """Return the names of the models."""
    return tuple(_MODELS)


def build_model(
    name: str,
    num_classes: int = 10,
    in_channels: int = 3,
    norm: str = "batch",
    norm_options: dict[str, Any] | None = None,
    conv_norm: bool = False,
) -> nn.Module:
    """Build a network.

    Args:
        name: one of `list_models`.
        num_classes: number of logits, K.
        in_channels: channels of the input, C.
        norm: one of `augserve.norms.list_norms`; it also decides the statistics that inference uses by default.
        norm_options: options of the norm, such as {"phi": 1.25}.
        conv_norm: make every convolution a ConvNorm2d as well.

    Returns:
        A module from images (N, C, H, W) to logits (N, K).

    Raises:
        ConfigurationError: an unknown model, norm or option; the choices are listed.

    Example:
        >>> network = build_model("resnet20", norm="aug", norm_options={"phi": 1.5})
        >>> sum(p.numel() for p in network.parameters())
        269722
    """
    if name not in _MODELS:
        raise unknown_choice("model", name, _MODELS)
    model = _MODELS[name](num_classes, in_channels, norm_factory(norm, norm_options))
    if conv_norm:
        convert_norm(model, "conv")
    normalize_model(model, norm, norm_options)
    return model
