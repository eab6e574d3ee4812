"""The residual networks for small images, 6n + 2 layers deep.

A 3x3 convolution to 16 channels, three stages of n blocks with 16, 32 and 64 channels (the later two halve the
image), global average pooling, a linear layer. A block is y = relu(norm(conv(relu(norm(conv(x))))) + s(x)); where
the shape changes, the shortcut s takes every second pixel and pads the channels with zeros (option A: it has no
parameters, so that resnet20 has the paper's 0.27 million).

Source: He et al. 2016, "Deep residual learning for image recognition", section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augserve.errors import ConfigurationError
from augserve.models.blocks import NormFactory, normed_relu

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each followed by its norm, and a shortcut without parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm(out_channels)
        self.stride = stride
        self.added = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        y = normed_relu(self.norm1, self.conv1(x))
        return normed_relu(self.norm2, self.conv2(y), self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Return x itself, or every stride-th pixel of it with zero channels on both sides."""
        if self.stride == 1 and self.added == 0:
            return x
        before = self.added // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))


class ResNetCifar(nn.Module):
    """The network of `depth` = 6n + 2 layers.

    Args:
        depth: 20, 32, 44, 56, ...
        num_classes: K.
        in_channels: C.
        norm: from a number of channels to a norm layer.

    Raises:
        ConfigurationError: a depth that is not 6n + 2.

    Example:
        >>> ResNetCifar(20, 10, 3, nn.BatchNorm2d)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int, norm: NormFactory) -> None:
        super().__init__()
        blocks, left = divmod(depth - 2, 6)
        if left or blocks < 1:
            raise ConfigurationError(f"expected a depth of 6n + 2 (20, 32, 44, 56, ...); got {depth}")
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.norm1 = norm(WIDTHS[0])
        self.stages = nn.ModuleList()
        channels = WIDTHS[0]
        for width in WIDTHS:
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if block == 0 and width != WIDTHS[0] else 1
                stage.append(BasicBlock(channels, width, stride, norm))
                channels = width
            self.stages.append(stage)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K)."""
        x = normed_relu(self.norm1, self.conv1(x))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(torch.mean(x, dim=(2, 3)))
        return logits
