"""ResNet-18 in CIFAR form: basic blocks of 64 to 512 channels whose shortcuts are projected.

A 3x3 convolution to 64 channels, four stages of two blocks with 64, 128, 256 and 512 channels (the later three
halve the image), global average pooling, a linear layer. A block is relu(norm(conv(relu(norm(conv(x))))) + s(x));
where the shape changes, the shortcut s is a 1x1 convolution with its norm (option B).

Source: He et al. 2016, "Deep residual learning for image recognition", table 1. Its network for images of 224
pixels begins with a 7x7 convolution of stride 2 and a max-pool; here a 3x3 one of stride 1 takes their place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from augserve.models.blocks import NormedConv, NormFactory, initialize, relu
from augserve.models.resnet_cifar import BasicBlock

WIDTHS = (64, 128, 256, 512)
BLOCKS = 2  # in a stage


class ProjectionBlock(BasicBlock):
    """A basic block whose shortcut is a 1x1 convolution with its norm where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__(in_channels, out_channels, stride, norm)
        self.projection: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.projection = NormedConv(in_channels, out_channels, 1, norm, stride=stride)

    @override
    def shortcut(self, x: Tensor) -> Tensor:
        """Return x itself, or its projection."""
        projected: Tensor = self.projection(x)
        return projected


class ResNet18(nn.Module):
    """The network of 18 layers.

    Args:
        num_classes: K.
        in_channels: C.
        norm: from a number of channels to a norm layer.

    Example:
        >>> ResNet18(10, 3, nn.BatchNorm2d)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, in_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.stem = NormedConv(in_channels, WIDTHS[0], 3, norm, relu)
        self.stages = nn.ModuleList()
        channels = WIDTHS[0]
        for width in WIDTHS:
            stage = nn.Sequential()
            for block in range(BLOCKS):
                stride = 2 if block == 0 and width != WIDTHS[0] else 1
                stage.append(ProjectionBlock(channels, width, stride, norm))
                channels = width
            self.stages.append(stage)
        self.head = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(torch.mean(x, dim=(2, 3)))
        return logits
