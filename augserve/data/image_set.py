"""The one type that every loader returns: uint8 pixels, labels, and what a trainer must know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from augserve.data.split import stratified_holdout
from augserve.errors import DataError

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

VALIDATION_FRACTION = 0.1
VALIDATION_SEED = 20090408  # a constant of the data, not of a training run


class LabelledImages(NamedTuple):
    """images: uint8 (N, C, H, W); labels: int64 (N,)."""

    images: Pixels
    labels: Labels


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled image set in three disjoint parts.

    Args:
        name: the name that `load_dataset` knows it by.
        train_images: uint8 (N, C, H, W), pixels 0..255; val_images and test_images alike, each with
            its own N.
        train_labels: int64 (N,), positions in `classes`; val_labels and test_labels alike.
        classes: the class names, in label order.
        mean: per channel, in pixel scale [0, 1].
        std: per channel, in pixel scale [0, 1].
        flip: whether a random horizontal flip keeps the label.
        crop_padding: how far a random crop may shift an image, in pixels each way; 0 means no crop.

    Raises:
        DataError: parts that do not belong together (counts, shapes, types, labels, channels).

    Example:
        >>> from augserve.data import load_dataset
        >>> load_dataset("digits").shape
        (3, 32, 32)
    """

    name: str
    train_images: Pixels
    train_labels: Labels
    val_images: Pixels
    val_labels: Labels
    test_images: Pixels
    test_labels: Labels
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop_padding: int

    def __post_init__(self) -> None:
        for part in ("train", "val", "test"):
            _check_part(
                f"{self.name}, {part} part",
                getattr(self, f"{part}_images"),
                getattr(self, f"{part}_labels"),
                self.train_images.shape[1:],
                len(self.classes),
            )
        channels = self.train_images.shape[1]
        if not len(self.mean) == len(self.std) == channels or min(self.std) <= 0:
            raise DataError(
                f"{self.name}: expected a mean and a std > 0 for each of the {channels} channels; "
                f"got {self.mean} and {self.std}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width


def hold_out_validation(train: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """Cut an official train part into what trains and the 10% of every class that validates.

    Args:
        train: uint8 (N, C, H, W) images and int64 (N,) labels.

    Returns:
        The train part and the validation part, each in the official order.

    Example:
        >>> train = LabelledImages(np.zeros((40, 1, 2, 2), np.uint8), np.arange(40) % 2)
        >>> [len(part.labels) for part in hold_out_validation(train)]
        [36, 4]
    """
    kept, held = stratified_holdout(train.labels, VALIDATION_FRACTION, VALIDATION_SEED)
    return (
        LabelledImages(train.images[kept], train.labels[kept]),
        LabelledImages(train.images[held], train.labels[held]),
    )


def photographs(
    name: str,
    train: LabelledImages,
    test: LabelledImages,
    classes: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> ImageSet:
    """Build a set of small photographs from its official parts; 10% of train validates, flips make sense.

    Args:
        name: the name that `load_dataset` knows it by.
        train: the official train part.
        test: the official test part.
        classes: the class names, in label order.
        mean: per channel, in pixel scale [0, 1].
        std: per channel, in pixel scale [0, 1].
    """
    kept, held = hold_out_validation(train)
    return ImageSet(
        name=name,
        train_images=kept.images,
        train_labels=kept.labels,
        val_images=held.images,
        val_labels=held.labels,
        test_images=test.images,
        test_labels=test.labels,
        classes=classes,
        mean=mean,
        std=std,
        flip=True,
        crop_padding=2,
    )


def _check_part(where: str, images: Pixels, labels: Labels, shape: tuple[int, ...], n_classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise DataError(
            f"{where}: expected uint8 images (N, C, H, W) of one shape {shape}; got {images.dtype} {images.shape}"
        )
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{where}: expected int64 labels ({len(images)},), one an image; got {labels.dtype} {labels.shape}"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < n_classes):
        raise DataError(f"{where}: expected labels 0..{n_classes - 1}; got {labels.min()}..{labels.max()}")
