"""Images, as b64 and as files of a form, against Pillow and NumPy."""

from __future__ import annotations

import base64
import contextlib
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from augserve.errors import InputError, MediaTypeError, PayloadTooLargeError
from augserve.manifest import Preprocessing
from augserve.service.body.images import decode_image
from tests.service.tiny import MEAN, STD, expected_logits, some_rows

TOLERANCE = 1e-5


def picture(mode: str = "RGB", size: tuple[int, int] = (13, 9), seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), mode=None)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def oracle(data: bytes) -> np.ndarray:
    small = Image.open(io.BytesIO(data)).convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
    return ((np.asarray(small) / 255.0 - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)


PREPROCESSING = Preprocessing(height=8, width=8, color="RGB", mean=MEAN, std=STD)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoded_image_is_pillow_s(kind: str, mode: str) -> None:
    data = encoded(picture(mode), kind)
    row = decode_image(data, PREPROCESSING)
    assert row.dtype == np.float32
    assert row.flags.c_contiguous
    np.testing.assert_allclose(row, oracle(data), rtol=0, atol=TOLERANCE)


def test_height_and_width_are_not_swapped() -> None:
    grey = Preprocessing(height=2, width=5, color="L", mean=[0.0], std=[1.0])
    assert decode_image(encoded(picture()), grey).shape == (1, 2, 5)


def test_palette_with_transparency_and_sixteen_bits_are_read() -> None:
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    data = encoded(palette, transparency=bytes([0, 128, 255, 255]))
    expected = Image.open(io.BytesIO(data)).convert("RGBA").convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
    row = decode_image(data, PREPROCESSING)
    np.testing.assert_allclose(
        row, ((np.asarray(expected) / 255.0 - MEAN) / STD).transpose(2, 0, 1), rtol=0, atol=TOLERANCE
    )
    deep = encoded(Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)))
    grey = Preprocessing(height=8, width=8, color="L", mean=[0.0], std=[1.0])
    assert decode_image(deep, grey) == pytest.approx(0x80 / 255)


def test_what_is_not_a_whole_small_image_is_refused() -> None:
    whole = encoded(picture())
    with pytest.raises(MediaTypeError, match="got nothing"):
        decode_image(b"", PREPROCESSING)
    for other in (b"hello", encoded(picture(), "GIF"), encoded(picture(), "BMP")):
        with pytest.raises(MediaTypeError, match="PNG, JPEG or WebP"):
            decode_image(other, PREPROCESSING)
    with pytest.raises(InputError, match="damaged"):
        decode_image(whole[: len(whole) // 2], PREPROCESSING)
    with pytest.raises(PayloadTooLargeError, match="13 x 9"):
        decode_image(whole, PREPROCESSING, max_pixels=13 * 9 - 1)
    assert decode_image(whole, PREPROCESSING, max_pixels=13 * 9).shape == (3, 8, 8)
    for size in ((10_000, 10_000), (20_000, 10_000)):  # Pillow warns of the first and refuses the second
        with pytest.raises(PayloadTooLargeError):
            decode_image(encoded(Image.new("1", size)), PREPROCESSING)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_are_refused_or_read_never_worse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = np.frombuffer(encoded(picture(seed=seed), kind), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            where = rng.integers(0, len(whole), 3)
            damaged[where] = rng.integers(0, 256, 3)
            with contextlib.suppress(InputError, MediaTypeError, PayloadTooLargeError):
                assert np.isfinite(decode_image(damaged.tobytes(), PREPROCESSING)).all()


def test_numbers_and_b64_images_mix_in_one_request(server: httpx.Client) -> None:
    data = [encoded(picture(seed=seed), kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    given = some_rows(2)
    texts = [base64.b64encode(one).decode() for one in data]
    wrapped = "\n".join(texts[1][i : i + 76] for i in range(0, len(texts[1]), 76))
    instances = [{"b64": texts[0]}, given[0].tolist(), {"b64": wrapped}, given[1].tolist(), {"b64": texts[2]}]
    body = {"instances": instances, "tracking": False, "batch_size": 3, "return": ["logits"]}
    response = server.post("/predict", json=body)
    assert response.status_code == 200, response.text
    rows = np.stack([oracle(data[0]), given[0], oracle(data[1]), given[1], oracle(data[2])])
    logits = [one["logits"] for one in response.json()["predictions"]]
    np.testing.assert_allclose(logits, expected_logits(rows, [[0, 1, 2], [3, 4]], [0, 0]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({"tracking": "false"}, [0, 0]),
        ({"tracked_weight": "0.25"}, [0.25, 0.25]),
        ({"prior": "3"}, [0.5, 0.75]),
        ({"blend": '{"prior": 3}'}, [0.5, 0.75]),
        ({"tracking": "true", "model": "tiny"}, [1, 1]),
    ],
)
def test_form_is_answered_as_the_same_json(server: httpx.Client, fields: dict, weights: list) -> None:
    data = [encoded(picture(seed=seed)) for seed in range(4)]
    response = server.post(
        "/predict",
        data={"batch_size": "3", "return": ["logits, label", "probabilities"], "top_k": "2", **fields},
        files=[("file", (f"{i}.bin", one, "text/plain")) for i, one in enumerate(data)],
    )
    assert response.status_code == 200, response.text
    predictions = response.json()["predictions"]
    rows = np.stack([oracle(one) for one in data])
    expected = expected_logits(rows, [[0, 1, 2], [3]], weights)
    np.testing.assert_allclose([one["logits"] for one in predictions], expected, rtol=0, atol=TOLERANCE)
    assert set(predictions[0]) == {"index", "label", "probability", "probabilities", "logits", "top_k"}
