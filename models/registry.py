"""The models by name, as `--model` takes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from augserve.errors import ConfigurationError, unknown_choice
from augserve.models.blocks import NormFactory
from augserve.models.densenet import DenseNet121
from augserve.models.efficientnet import EfficientNetB0
from augserve.models.mobilenet_v2 import MobileNetV2
from augserve.models.resnet import ResNet18
from augserve.models.resnet_cifar import ResNetCifar
from augserve.models.vgg import VGG
from augserve.norms import convert_norm, norm_factory, normalize_model

_MODELS: dict[str, Callable[[int, int, NormFactory], nn.Module]] = {
    "resnet20": partial(ResNetCifar, 20),
    "resnet38": partial(ResNetCifar, 38),
    "resnet50-cifar": partial(ResNetCifar, 50),
    "resnet18": ResNet18,
    "vgg11": partial(VGG, 11),
    "vgg16": partial(VGG, 16),
    "vgg19": partial(VGG, 19),
    "mobilenet-v2": MobileNetV2,
    "densenet121": DenseNet121,
    "efficientnet-b0": EfficientNetB0,
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
        ConfigurationError: an unknown model, norm or option (the choices are listed), or a number below 1.

    Example:
        >>> network = build_model("resnet20", norm="aug", norm_options={"phi": 1.5})
        >>> sum(p.numel() for p in network.parameters())
        269722
    """
    if name not in _MODELS:
        raise unknown_choice("model", name, _MODELS)
    for what, number in (("num_classes", num_classes), ("in_channels", in_channels)):
        if number < 1:
            raise ConfigurationError(f"{what} must be at least 1; got {number}")
    model = _MODELS[name](num_classes, in_channels, norm_factory(norm, norm_options))
    if conv_norm:
        convert_norm(model, "conv")
    normalize_model(model, norm, norm_options)
    return model
