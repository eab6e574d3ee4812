"""From pixels to batches, against plain Python: normalization, crop, order, and what a seed fixes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from augserve.data import ImageSet
from augserve.training.batches import Normalize, random_crop, training_batches

CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def epoch(data: ImageSet, batch_size: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    rows, labels = zip(*training_batches(data, batch_size, CPU, seeded(seed)), strict=True)
    return list(rows), list(labels)


def marked(data: ImageSet, n: int, *, flip: bool = False, crop_padding: int = 0) -> ImageSet:
    """n images whose every pixel holds the image's number, with the number mod 3 as label; not normalized."""
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 3, 16, 16)).copy()
    labels = np.arange(n) % 3
    return replace(
        data,
        train_images=pixels,
        train_labels=labels,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        flip=flip,
        crop_padding=crop_padding,
    )


def test_normalize_is_the_formula_channel_by_channel() -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.5, 2.0)
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    rows = Normalize(mean, std)(pixels)
    assert rows.dtype == torch.float32
    expected = [[(value / 255 - m) / s for value in range(256)] for m, s in zip(mean, std, strict=True)]
    np.testing.assert_allclose(rows.reshape(3, 256).numpy(), expected, rtol=1e-5, atol=1e-6)


def mirrored(position: int, size: int) -> int:
    """The pixel that a position outside shows: walk, and turn round at each border without standing still."""
    walk = list(range(size)) + list(range(size - 2, 0, -1))
    return walk[position % len(walk)]


@pytest.mark.parametrize(("height", "width", "padding"), [(4, 4, 1), (3, 5, 2), (6, 5, 4)])
def test_crop_is_a_shift_that_mirrors_the_border(height: int, width: int, padding: int) -> None:
    n = 60
    pixels = torch.randint(256, (n, 2, height, width), generator=seeded(1), dtype=torch.uint8)
    cropped = random_crop(pixels, padding, seeded(2))
    assert (cropped.dtype, cropped.shape) == (pixels.dtype, pixels.shape)
    top, left = torch.randint(2 * padding + 1, (2, n), generator=seeded(2))  # the same draw
    for k in range(n):
        down, right = int(top[k]) - padding, int(left[k]) - padding
        for i in range(height):
            for j in range(width):
                expected = pixels[k, :, mirrored(i + down, height), mirrored(j + right, width)]
                assert torch.equal(cropped[k, :, i, j], expected)


def test_crop_reaches_every_shift() -> None:
    places = torch.arange(25, dtype=torch.uint8).reshape(1, 1, 5, 5).repeat(500, 1, 1, 1)
    middle = random_crop(places, 2, seeded(0))[:, 0, 2, 2]  # shows where the window lies
    assert set(middle.tolist()) == set(range(25))


@pytest.mark.parametrize(("n", "batch_size"), [(48, 16), (50, 16), (5, 16), (48, 2)])
def test_an_epoch_covers_every_image_once_with_its_label(images: ImageSet, n: int, batch_size: int) -> None:
    rows, labels = epoch(marked(images, n), batch_size, seed=3)
    assert [len(one) for one in rows] == [len(one) for one in labels]
    assert {len(one) for one in rows[:-1]} <= {batch_size}
    numbers = (torch.cat(rows)[:, 0, 0, 0] * 255).round().to(torch.int64)
    assert sorted(numbers.tolist()) == list(range(n))
    assert torch.equal(numbers % 3, torch.cat(labels))
    assert numbers.tolist() != list(range(n))  # shuffled


def test_a_last_batch_of_one_row_is_left_out(images: ImageSet) -> None:
    rows, _ = epoch(marked(images, 33), 16, seed=0)
    assert [len(one) for one in rows] == [16, 16]


def test_without_augmentation_rows_are_the_normalized_images(images: ImageSet) -> None:
    data = replace(images, flip=False, crop_padding=0)
    rows, labels = epoch(data, 48, seed=0)
    order = torch.randperm(48, generator=seeded(0))
    assert torch.equal(labels[0], torch.from_numpy(data.train_labels)[order])
    expected = Normalize(data.mean, data.std)(torch.from_numpy(data.train_images)[order])
    assert torch.equal(rows[0], expected)


def test_flip_mirrors_some_images_and_no_others(images: ImageSet) -> None:
    plain, _ = epoch(replace(images, flip=False, crop_padding=0), 48, seed=0)
    mirrored, _ = epoch(replace(images, flip=True, crop_padding=0), 48, seed=0)
    kinds = []
    for before, after in zip(plain[0], mirrored[0], strict=True):
        same, turned = torch.equal(after, before), torch.equal(after, before.flip(2))
        assert same or turned
        kinds.append(turned)
    assert 8 < sum(kinds) < 40


def test_the_seed_fixes_order_and_augmentation(images: ImageSet) -> None:
    first, again, other = (epoch(images, 16, seed) for seed in (0, 0, 1))
    for mine, same in zip(first[0] + first[1], again[0] + again[1], strict=True):
        assert torch.equal(mine, same)
    assert not torch.equal(torch.cat(first[0]), torch.cat(other[0]))


def test_two_epochs_of_one_generator_differ(images: ImageSet) -> None:
    generator = seeded(0)
    one, two = (next(training_batches(images, 48, CPU, generator))[0] for _ in range(2))
    assert not torch.equal(one, two)
