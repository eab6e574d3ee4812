"""Parameter counts from the papers' tables, in whole numbers: no model is built here.

Each function takes the classes K and, where the paper's network for 224 pixels has the same trunk, whether to count
that network instead of the CIFAR form. Three input channels; a norm has two parameters a channel.
"""

from __future__ import annotations

from collections.abc import Callable


def conv(before: int, after: int, kernel: int) -> int:
    return before * after * kernel * kernel


def normed(before: int, after: int, kernel: int) -> int:
    return conv(before, after, kernel) + 2 * after


def linear(before: int, after: int) -> int:
    return (before + 1) * after


def resnet_cifar(depth: int) -> Callable[[int, bool], int]:
    """He et al. 2016, section 4.2: 1 + 6n convolutions of 3x3 and a linear layer; shortcuts without parameters."""

    def count(classes: int, _: bool = False) -> int:
        n = (depth - 2) // 6
        total = normed(3, 16, 3) + 2 * n * normed(16, 16, 3)
        for width in (32, 64):
            total += normed(width // 2, width, 3) + (2 * n - 1) * normed(width, width, 3)
        return total + linear(64, classes)

    return count


def resnet18(classes: int, imagenet: bool = False) -> int:
    """He et al. 2016, table 1: [3x3, w; 3x3, w] x 2 for w = 64, 128, 256, 512, with projections (option B)."""
    total = normed(3, 64, 7 if imagenet else 3) + 4 * normed(64, 64, 3)
    for width in (128, 256, 512):
        total += normed(width // 2, width, 3) + 3 * normed(width, width, 3) + normed(width // 2, width, 1)
    return total + linear(512, classes)


def vgg(depth: int) -> Callable[[int, bool], int]:
    """Simonyan and Zisserman 2015, table 1: convolutions with a bias, and here with a norm."""
    columns = {
        11: (64, 128, 256, 256, 512, 512, 512, 512),
        16: (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
        19: (64, 64, 128, 128, *(256,) * 4, *(512,) * 8),
    }

    def count(classes: int, imagenet: bool = False) -> int:
        total, before = 0, 3
        for width in columns[depth]:
            total += conv(before, width, 3) + width + (0 if imagenet else 2 * width)
            before = width
        if imagenet:
            return total + linear(512 * 7 * 7, 4096) + linear(4096, 4096) + linear(4096, classes)
        return total + linear(512, classes)

    return count


def inverted_residual(before: int, after: int, expansion: int, kernel: int) -> int:
    wide = expansion * before
    widen = 0 if expansion == 1 else normed(before, wide, 1)
    return widen + normed(1, wide, kernel) + normed(wide, after, 1)


def mobilenet_v2(classes: int, _: bool = False) -> int:
    """Sandler et al. 2018, table 2: the strides are all that the CIFAR form changes."""
    total, before = normed(3, 32, 3) + inverted_residual(32, 16, 1, 3), 16
    for width, times in ((24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1)):
        total += inverted_residual(before, width, 6, 3) + (times - 1) * inverted_residual(width, width, 6, 3)
        before = width
    return total + normed(320, 1280, 1) + linear(1280, classes)


def densenet121(classes: int, imagenet: bool = False) -> int:
    """Huang et al. 2017, table 1, k = 32: norm, 1x1 to 128, norm, 3x3 to 32; transitions halve the channels."""
    total, channels = (normed(3, 64, 7) if imagenet else conv(3, 64, 3)), 64
    for layers in (6, 12, 24, 16):
        for _ in range(layers):
            total += 2 * channels + normed(channels, 128, 1) + conv(128, 32, 3)
            channels += 32
        if layers != 16:
            total += 2 * channels + conv(channels, channels // 2, 1)
            channels //= 2
    return total + 2 * channels + linear(channels, classes)


def efficientnet_b0(classes: int, _: bool = False) -> int:
    """Tan and Le 2019, table 1: MBConv with a squeeze to a quarter of the block's input channels."""

    def block(before: int, after: int, expansion: int, kernel: int) -> int:
        wide, narrow = expansion * before, before // 4
        return inverted_residual(before, after, expansion, kernel) + linear(wide, narrow) + linear(narrow, wide)

    total, before = normed(3, 32, 3) + block(32, 16, 1, 3), 16
    for width, times, kernel in ((24, 2, 3), (40, 2, 5), (80, 3, 3), (112, 3, 5), (192, 4, 5), (320, 1, 3)):
        total += block(before, width, 6, kernel) + (times - 1) * block(width, width, 6, kernel)
        before = width
    return total + normed(320, 1280, 1) + linear(1280, classes)


COUNTS: dict[str, Callable[[int, bool], int]] = {
    "resnet20": resnet_cifar(20),
    "resnet38": resnet_cifar(38),
    "resnet50-cifar": resnet_cifar(50),
    "resnet18": resnet18,
    "vgg11": vgg(11),
    "vgg16": vgg(16),
    "vgg19": vgg(19),
    "mobilenet-v2": mobilenet_v2,
    "densenet121": densenet121,
    "efficientnet-b0": efficientnet_b0,
}
