"""From the bytes of a picture to one row, as the manifest's preprocessing says.

colour -> resize (bilinear) to width x height -> / 255 -> - mean -> / std, channels first.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from augserve.errors import InputError, MediaTypeError, PayloadTooLargeError
from augserve.manifest import Preprocessing
from augserve.service.settings import DEFAULT_MAX_IMAGE_PIXELS

FORMATS = ("PNG", "JPEG", "WEBP")


def decode_image(
    data: bytes, preprocessing: Preprocessing, max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
) -> npt.NDArray[np.float32]:
    """Decode and preprocess one image.

    Args:
        data: a PNG, JPEG or WebP file; of an animation, its first frame. What it is shows in its content: no
            file name or media type is looked at.
        preprocessing: size, colour, mean and std of the model's rows.
        max_pixels: the most pixels (width x height), checked before anything is decoded.

    Returns:
        One row, float32 (C, H, W).

    Raises:
        MediaTypeError: not an image of these formats.
        PayloadTooLargeError: more pixels than allowed.
        InputError: a damaged image.

    Example:
        >>> decode_image(Path("cat.png").read_bytes(), manifest.preprocessing).shape
        (3, 32, 32)
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        kind = "nothing" if not data else f"{len(data)} bytes of something else"
        raise MediaTypeError(f"expected a PNG, JPEG or WebP image; got {kind}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PayloadTooLargeError(f"expected an image of at most {max_pixels} pixels; got more") from None
    except Exception as error:  # Pillow's readers share no exception class
        raise InputError(f"expected a whole image; its header is damaged ({_reason(error)})") from None
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise PayloadTooLargeError(f"expected an image of at most {max_pixels} pixels; got {width} x {height}")
        try:
            image.load()
        except Exception as error:  # as above
            raise InputError(f"expected a whole image; this one is damaged ({_reason(error)})") from None
        row = _to_eight_bits(image).convert(preprocessing.color)
    row = row.resize((preprocessing.width, preprocessing.height), Image.Resampling.BILINEAR)
    values = np.asarray(row, dtype=np.float32).reshape(preprocessing.height, preprocessing.width, -1)
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    return np.ascontiguousarray(((values / np.float32(255) - mean) / std).transpose(2, 0, 1))


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Undo the two storage forms that Pillow's conversion to RGB or L would clip or complain about."""
    if image.mode.startswith("I"):  # 16-bit grey: a plain conversion clips at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
