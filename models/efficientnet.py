"""EfficientNet-B0 in CIFAR form: MobileNetV2's blocks with squeeze-and-excitation, SiLU and stochastic depth.

A 3x3 convolution to 32 channels, seven stages of blocks, a 1x1 convolution to 1280 channels, global average
pooling, dropout and a linear layer. A block is x + drop(project(excite(depthwise(expand(x))))), or without x and
drop where the shape changes. excite weighs each channel of each row by sigmoid(W2 silu(W1 mean)), with a quarter of
the block's input channels in between; in training, drop sets whole rows to 0, the more often the deeper the block.

Source: Tan and Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks", table 1 and
section 5 (survival probability 0.8, dropout 0.2); Hu et al. 2018, "Squeeze-and-excitation networks"; Huang et al.
2016, "Deep networks with stochastic depth", whose rate grows linearly with depth. Initialisation by fan-out, as in
the published code. For images of 224 pixels the paper halves five times; here the first convolution and the stage
of 24 channels keep the size, so that 32 pixels come to 4 and not to 1. Each norm has its own eps and momentum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from augserve.models.blocks import NormedConv, NormFactory, initialize
from augserve.models.mobilenet_v2 import InvertedResidual

STEM, LAST = 32, 1280
STAGES = (  # expansion, channels, blocks, stride of the first, kernel: the paper's table 1
    (1, 16, 1, 1, 3),
    (6, 24, 2, 1, 3),  # there stride 2
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
DROPOUT = 0.2
DEPTH_RATE = 0.2  # of stochastic depth, growing linearly: the block after the last would have it


class SqueezeExcitation(nn.Module):
    """Each channel of each row times sigmoid(expand(silu(reduce(its row's mean))))."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        weight = self.expand(F.silu(self.reduce(torch.mean(x, dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(weight)


class StochasticDepth(nn.Module):
    """In training, a row times 0 with probability `rate`, else times 1 / (1 - rate); else the input itself.

    Rows are drawn from torch's global generator.

    Example:
        >>> rows = StochasticDepth(0.5)(torch.ones(1000, 1, 1, 1))
        >>> sorted(set(rows.flatten().tolist()))
        [0.0, 2.0]
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        if not self.training or self.rate == 0:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, 1, 1), self.rate)

    @override
    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class MBConv(InvertedResidual):
    """MobileNetV2's block with SiLU, squeeze-and-excitation and stochastic depth."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expansion: int,
        norm: NormFactory,
        kernel_size: int,
        depth_rate: float,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, expansion, norm, kernel_size, F.silu)
        self.excite = SqueezeExcitation(expansion * in_channels, in_channels // 4)
        self.drop = StochasticDepth(depth_rate)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.excite(self.depthwise(self.expand(x))))
        return self.drop(y) + x if self.adds_input else y


class EfficientNetB0(nn.Module):
    """The network that the paper scales up.

    Args:
        num_classes: K.
        in_channels: C.
        norm: from a number of channels to a norm layer.

    Example:
        >>> EfficientNetB0(10, 3, nn.BatchNorm2d)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, in_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.stem = NormedConv(in_channels, STEM, 3, norm, F.silu)
        self.stages = nn.ModuleList()
        channels, index, total = STEM, 0, sum(blocks for _, _, blocks, _, _ in STAGES)
        for expansion, width, blocks, first_stride, kernel in STAGES:
            stage = nn.Sequential()
            for block in range(blocks):
                stride, rate = first_stride if block == 0 else 1, DEPTH_RATE * index / total
                stage.append(MBConv(channels, width, stride, expansion, norm, kernel, rate))
                channels, index = width, index + 1
            self.stages.append(stage)
        self.last = NormedConv(channels, LAST, 1, norm, F.silu)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(LAST, num_classes)
        initialize(self, "out")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K)."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        features = torch.mean(self.last(x), dim=(2, 3))
        logits: Tensor = self.head(self.dropout(features))
        return logits
