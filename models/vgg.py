"""The VGG networks in CIFAR form: five stages of 3x3 convolutions, a max-pool after each, one linear layer.

A convolution has a bias, a norm and a ReLU after it. The stages have 64, 128, 256, 512 and 512 channels.

Source: Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition", table 1,
configurations A (11), D (16) and E (19). Of the three linear layers for 7x7 maps, which hold most of the paper's
parameters, one is left; the norms came with Ioffe and Szegedy 2015.

A pool halves each side, rounded up. Images smaller than 32 pixels would come to 1x1 before the last stage, where a
channel has one value a row and some norms nothing to work with: so a side of 2 stays until the last pool. What
larger images have left after it is averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augserve.errors import ConfigurationError
from augserve.models.blocks import NormedConv, NormFactory, initialize, relu

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # in each stage, by depth


class VGG(nn.Module):
    """The network of `depth` layers, by the paper's count, which has two more linear layers.

    Args:
        depth: 11, 16 or 19.
        num_classes: K.
        in_channels: C.
        norm: from a number of channels to a norm layer.

    Raises:
        ConfigurationError: another depth.

    Example:
        >>> VGG(11, 10, 3, nn.BatchNorm2d)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int, norm: NormFactory) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ConfigurationError(f"expected a depth of {', '.join(map(str, CONVOLUTIONS))}; got {depth}")
        self.stages = nn.ModuleList()
        channels = in_channels
        for width, convolutions in zip(WIDTHS, CONVOLUTIONS[depth], strict=True):
            stage = nn.Sequential()
            for _ in range(convolutions):
                stage.append(NormedConv(channels, width, 3, norm, relu, bias=True))
                channels = width
            self.stages.append(stage)
        self.head = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K)."""
        for index, stage in enumerate(self.stages, 1):
            x = halve(stage(x), least=1 if index == len(self.stages) else 2)
        logits: Tensor = self.head(torch.mean(x, dim=(2, 3)))
        return logits


def halve(x: Tensor, least: int) -> Tensor:
    """Max-pool each side of x (N, C, H, W) to its half, rounded up; a side of `least` or less stays."""
    height, width = (2 if side > least else 1 for side in x.shape[2:])
    odd = x.shape[2] % height or x.shape[3] % width
    return F.max_pool2d(x, (height, width), ceil_mode=bool(odd))
