"""What several networks are made of: a convolution with its norm, and the weights that training begins with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from augserve.norms import StatisticsNorm

NormFactory = Callable[[int], nn.Module]
Activation = Callable[[Tensor], Tensor]


class NormedConv(nn.Module):
    """A convolution, its norm and, where one is given, an activation: activation(norm(conv(x))).

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: odd; k // 2 zeros on each side keep the image's size at stride 1.
        norm: from a number of channels to a norm layer.
        activation: a function, or None.
        stride: of the convolution.
        groups: of the convolution; C_in makes it depthwise.
        bias: of the convolution.

    Example:
        >>> import torch
        >>> NormedConv(3, 8, 3, nn.BatchNorm2d, relu, stride=2)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        norm: NormFactory,
        activation: Activation | None = None,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.norm = norm(out_channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H / stride, W / stride), rounded up."""
        y = self.conv(x)
        if self.activation is relu:
            return normed_relu(self.norm, y)
        y = self.norm(y)
        return y if self.activation is None else self.activation(y)


def normed_relu(norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return max(0, norm(x) + residual); our norms do it all in one pass over x, where a kernel is.

    Example:
        >>> import torch
        >>> normed_relu(nn.Identity(), torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 0.5]))
        tensor([0.0000, 2.5000])
    """
    if isinstance(norm, StatisticsNorm):
        y: Tensor = norm(x, residual=residual, relu=True)
        return y
    y = norm(x)
    if residual is not None:
        y = y + residual
    return F.relu(y, inplace=y is not x)  # a norm that is the identity must leave x as it is


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0), written over x."""
    return F.relu(x, inplace=True)


def initialize(network: nn.Module, fan: Literal["in", "out"] = "in") -> None:
    """Draw the weights of every convolution, in place, from torch's global generator; its bias begins at 0.

    Normal, variance 2 / fan: the connections of one output (fan "in") or of one input ("out"), within its group of
    channels. Source: He et al. 2015, "Delving deep into rectifiers", equations 10 and 14.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            channels = module.in_channels if fan == "in" else module.out_channels
            connections = channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / connections))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
