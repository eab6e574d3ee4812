"""MobileNetV2 in CIFAR form: inverted residuals, which widen inside and whose ends are linear.

A block widens its input t times by a 1x1 convolution (not where t = 1), filters each channel by a 3x3 one, and
narrows by a third, 1x1, which has no activation; where the shape stays, the input is added. Each convolution has
its norm; the first two have ReLU6. Before the blocks stands a 3x3 convolution to 32 channels, behind them a 1x1 one
to 1280, global average pooling and a linear layer.

Source: Sandler et al. 2018, "MobileNetV2: inverted residuals and linear bottlenecks", tables 1 and 2. For images of
224 pixels the paper halves five times; here the first convolution and the stage of 24 channels keep the size, so
that 32 pixels come to 4 and not to 1. The paper gives no initialisation: variance 2 / fan-out is usual.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augserve.models.blocks import Activation, NormedConv, NormFactory, initialize

STEM, LAST = 32, 1280
STAGES = (  # t, channels, blocks, stride of the first: the paper's table 2
    (1, 16, 1, 1),
    (6, 24, 2, 1),  # there 2
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """project(depthwise(expand(x))), plus x where the shape stays.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        stride: of the depthwise convolution.
        expansion: t; the depthwise convolution has t C_in channels.
        norm: from a number of channels to a norm layer.
        kernel_size: of the depthwise convolution.
        activation: of the first two convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expansion: int,
        norm: NormFactory,
        kernel_size: int,
        activation: Activation,
    ) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = NormedConv(in_channels, wide, 1, norm, activation)
        self.depthwise = NormedConv(wide, wide, kernel_size, norm, activation, stride=stride, groups=wide)
        self.project = NormedConv(wide, out_channels, 1, norm)
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H / stride, W / stride), rounded up."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return y + x if self.adds_input else y


class MobileNetV2(nn.Module):
    """The network of width 1.

    Args:
        num_classes: K.
        in_channels: C.
        norm: from a number of channels to a norm layer.

    Example:
        >>> MobileNetV2(10, 3, nn.BatchNorm2d)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, in_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.stem = NormedConv(in_channels, STEM, 3, norm, relu6)
        self.stages = nn.ModuleList()
        channels = STEM
        for expansion, width, blocks, first_stride in STAGES:
            stage = nn.Sequential()
            for block in range(blocks):
                stride = first_stride if block == 0 else 1
                stage.append(InvertedResidual(channels, width, stride, expansion, norm, 3, relu6))
                channels = width
            self.stages.append(stage)
        self.last = NormedConv(channels, LAST, 1, norm, relu6)
        self.head = nn.Linear(LAST, num_classes)
        initialize(self, "out")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(torch.mean(self.last(x), dim=(2, 3)))
        return logits


def relu6(x: Tensor) -> Tensor:
    """Return x between 0 and 6, written over x."""
    return F.relu6(x, inplace=True)
