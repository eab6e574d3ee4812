"""Strip files: an image set as lossless WebP strips in one .npz, the smallest form that keeps every pixel.

The file holds four arrays: ``webp`` uint8 (bytes,), strips of images stacked vertically, one after the other;
``offsets`` int64 (strips + 1,), where each strip begins and the last one ends; ``labels`` uint8 (N,);
``shape`` int64, (N, H, W, 3) for colour or (N, H, W) for grey (a grey strip stores three equal channels).
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from augserve.data.image_set import LabelledImages, Pixels
from augserve.data.reading import check_labels, reading
from augserve.errors import DataError

_KEYS = ("webp", "offsets", "labels", "shape")


def read_strips(path: Path, image_shape: tuple[int, int, int], n_classes: int) -> LabelledImages:
    """Read one strip file.

    Args:
        path: the .npz file.
        image_shape: the (C, H, W) that its images must have; C is 1 or 3.
        n_classes: labels must lie in 0..n_classes - 1.

    Returns:
        uint8 (N, C, H, W) images and int64 (N,) labels, in the file's order.

    Raises:
        DataError: a file that cannot be read, is damaged, or holds other images than expected.

    Example:
        >>> images, labels = read_strips(Path("cifar10_test.npz"), (3, 32, 32), 10)  # doctest: +SKIP
    """
    expected = f"an .npz of WebP strips with the arrays {', '.join(_KEYS)}"
    with reading(path, expected), path.open("rb") as stream:  # np.load leaves a damaged file open
        loaded = np.load(stream, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: expected an .npz archive; got a single array")
        with loaded:
            absent = [key for key in _KEYS if key not in loaded.files]
            if absent:
                raise DataError(f"{path}: expected the arrays {', '.join(_KEYS)}; {', '.join(absent)} is not there")
            webp, offsets, labels, shape = (loaded[key] for key in _KEYS)
        n = _count(path, shape, image_shape)
        checked = check_labels(labels, n, n_classes, path)
        return LabelledImages(_decode(path, webp, offsets, n, image_shape), checked)


def _count(path: Path, shape: npt.NDArray[np.int64], image_shape: tuple[int, int, int]) -> int:
    """Return N of the file's shape, whose other sizes must be the expected ones."""
    channels, height, width = image_shape
    rest = [height, width] if channels == 1 else [height, width, channels]
    came = shape.tolist()
    if shape.dtype.kind not in "iu" or not isinstance(came, list) or came[1:] != rest:
        raise DataError(f"{path}: expected shape (N, {', '.join(map(str, rest))}); got {came}")
    return int(came[0])


def _decode(
    path: Path,
    webp: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    n: int,
    image_shape: tuple[int, int, int],
) -> Pixels:
    """Decode every strip into one uint8 (N, C, H, W) array."""
    channels, height, width = image_shape
    if webp.dtype != np.uint8 or webp.ndim != 1 or offsets.dtype.kind not in "iu" or offsets.ndim != 1:
        raise DataError(
            f"{path}: expected webp uint8 (bytes,) and integer offsets; got {webp.dtype}, {offsets.dtype}"
        )
    ends = [int(end) for end in offsets]
    if not ends or ends[0] != 0 or ends[-1] != webp.size or ends != sorted(ends):
        raise DataError(
            f"{path}: expected offsets that rise from 0 to {webp.size} bytes; got {ends[:1]}..{ends[-1:]}"
        )
    images = np.empty((n, channels, height, width), dtype=np.uint8)
    done = 0
    for begin, end in itertools.pairwise(ends):
        with Image.open(io.BytesIO(webp[begin:end].tobytes()), formats=("WEBP",)) as strip:
            rows, left = divmod(strip.height, height)  # known before any pixel is decoded
            if strip.width != width or left or done + rows > n:
                raise DataError(
                    f"{path}: expected {n} images of {height}x{width}; after {done} of them came a strip of "
                    f"{strip.height}x{strip.width} pixels"
                )
            pixels = np.asarray(strip.convert("RGB")).reshape(rows, height, width, 3)
        images[done : done + rows] = pixels[..., :channels].transpose(0, 3, 1, 2)
        done += rows
    if done != n:
        raise DataError(f"{path}: expected {n} images; its strips hold {done}")
    return images
