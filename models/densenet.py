"""DenseNet-121 in CIFAR form: every layer sees the outputs of all layers before it in its block.

A layer adds k = 32 channels to its input: x, conv3x3(relu(norm(conv1x1(relu(norm(x)))))), concatenated; the 1x1
convolution has 4 k channels. Blocks of 6, 12, 24 and 16 layers; between two of them a norm, a ReLU, a convolution
of 1x1 to half of the channels and an average-pool. Before the blocks stands a 3x3 convolution to 2 k channels,
behind them a norm, a ReLU, global average pooling and a linear layer.

Source: Huang et al. 2017, "Densely connected convolutional networks", table 1 (DenseNet-BC) and section 3. Its
network for images of 224 pixels begins with a 7x7 convolution of stride 2, its norm and a max-pool; the stem here
is that of the paper's CIFAR networks, whose first norm is the first layer's own.

A pool leaves a side of 3 or less as it is, so that small images keep maps of 2x2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augserve.models.blocks import NormFactory, initialize, normed_relu

GROWTH = 32  # k
BLOCKS = (6, 12, 24, 16)


class DenseLayer(nn.Module):
    """A layer of a block: its input and k channels more."""

    def __init__(self, in_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * GROWTH, 1, bias=False)
        self.norm2 = norm(4 * GROWTH)
        self.conv2 = nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + k, H, W)."""
        y = self.conv1(normed_relu(self.norm1, x))
        y = self.conv2(normed_relu(self.norm2, y))
        return torch.cat((x, y), 1)


class Transition(nn.Module):
    """What stands between two blocks: half of the channels, and of the image's sides."""

    def __init__(self, in_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.norm = norm(in_channels)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C / 2, H / 2, W / 2), rounded down; a side of 3 or less stays."""
        y = self.conv(normed_relu(self.norm, x))
        height, width = (2 if side > 3 else 1 for side in y.shape[2:])
        return F.avg_pool2d(y, (height, width))


class DenseNet121(nn.Module):
    """The network of 121 layers.

    Args:
        num_classes: K.
        in_channels: C.
        norm: from a number of channels to a norm layer.

    Example:
        >>> DenseNet121(10, 3, nn.BatchNorm2d)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, in_channels: int, norm: NormFactory) -> None:
        super().__init__()
        channels = 2 * GROWTH
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for index, layers in enumerate(BLOCKS):
            if index > 0:
                self.transitions.append(Transition(channels, norm))
                channels //= 2
            self.blocks.append(nn.Sequential(*(DenseLayer(channels + GROWTH * n, norm) for n in range(layers))))
            channels += GROWTH * layers
        self.norm = norm(channels)
        self.head = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K)."""
        x = self.blocks[0](self.stem(x))
        for transition, block in zip(self.transitions, self.blocks[1:], strict=True):
            x = block(transition(x))
        x = normed_relu(self.norm, x)
        logits: Tensor = self.head(torch.mean(x, dim=(2, 3)))
        return logits
