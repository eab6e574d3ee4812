"""Digits: the set that needs no files, 1,797 handwritten digits that scikit-learn carries.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (its test part, as scikit-learn's load_digits gives it): 8x8 counts of ink, 0..16.

The networks in CIFAR form take (3, 32, 32), so that is what this set is: a count v becomes the grey
round(255 v / 16), the image is enlarged to 32x32 by Pillow's bilinear filter, and the one grey plane is
repeated over three equal channels. The same network then trains on digits and on CIFAR-10.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from augserve.data.image_set import ImageSet, Pixels
from augserve.data.split import stratified_holdout
from augserve.errors import DataError

SIZE = 32
TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.1  # of what the test part leaves: 72% train, 8% validation, 20% test
SPLIT_SEED = 1998

MEAN = (0.306044, 0.306044, 0.306044)  # of the train part, in pixel scale
STD = (0.323691, 0.323691, 0.323691)


def load_digits() -> ImageSet:
    """Load the digits: 1,293 images to train, 145 to validate, 359 to test.

    Returns:
        The set, (3, 32, 32); flip is False (a mirrored 2 is no digit), crop_padding is 2.

    Raises:
        DataError: scikit-learn is not installed.

    Example:
        >>> digits = load_digits()
        >>> digits.classes[:3]
        ('0', '1', '2')
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            "the data set 'digits' comes with scikit-learn, which is not installed: pip install 'augserve[train]'"
        ) from error
    counts, target = datasets.load_digits(return_X_y=True)  # (1797, 64) float in 0..16, (1797,)
    images, labels = _enlarge(counts.reshape(-1, 8, 8)), target.astype(np.int64)
    rest, test = stratified_holdout(labels, TEST_FRACTION, SPLIT_SEED)
    kept, held = stratified_holdout(labels[rest], VALIDATION_FRACTION, SPLIT_SEED)
    train, val = rest[kept], rest[held]
    return ImageSet(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        val_images=images[val],
        val_labels=labels[val],
        test_images=images[test],
        test_labels=labels[test],
        classes=tuple("0123456789"),
        mean=MEAN,
        std=STD,
        flip=False,
        crop_padding=2,
    )


def _enlarge(counts: npt.NDArray[np.float64]) -> Pixels:
    """Turn counts of ink (N, 8, 8) into pixels (N, 3, 32, 32)."""
    grey = np.rint(counts * (255 / 16)).astype(np.uint8)
    large = np.stack(
        [np.asarray(Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for one in grey]
    )
    return np.repeat(large[:, None], 3, axis=1)
