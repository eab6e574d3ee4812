"""Digits: parts, constants, and that every pixel comes from the set it says."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from augserve.data import ImageSet, load_dataset
from augserve.errors import DataError


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_dataset("digits")


def test_the_parts_are_the_documented_ones(digits):
    counts = [len(labels) for labels in (digits.train_labels, digits.val_labels, digits.test_labels)]
    assert counts == [1293, 145, 359]
    assert digits.shape == (3, 32, 32)
    assert (digits.flip, digits.crop_padding, digits.classes) == (False, 2, tuple("0123456789"))


def test_every_class_has_the_same_share_of_every_part(digits):
    parts = [np.bincount(x) for x in (digits.train_labels, digits.val_labels, digits.test_labels)]
    shares = np.stack(parts) / np.sum(parts, axis=0)
    assert np.abs(shares - [[0.72], [0.08], [0.20]]).max() < 0.01


def test_mean_and_std_are_those_of_the_train_part(digits):
    scaled = digits.train_images / 255
    # The constants have six decimals; Pillow's rounding of the bilinear weights may differ between versions.
    np.testing.assert_allclose(scaled.mean(axis=(0, 2, 3)), digits.mean, atol=1e-4)
    np.testing.assert_allclose(scaled.std(axis=(0, 2, 3)), digits.std, atol=1e-4)


def test_the_images_are_scikit_learns_enlarged(digits):
    from sklearn.datasets import load_digits

    counts, target = load_digits(return_X_y=True)
    images = np.concatenate([digits.train_images, digits.val_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.val_labels, digits.test_labels])
    assert (images == images[:, :1]).all()
    assert images.max() == 255
    assert np.array_equal(np.bincount(labels), np.bincount(target))
    # The mean ink of an image is its own: enlarging bilinearly moves it by a few per cent at most.
    ink = np.sort(counts.mean(axis=1) / 16)
    assert np.abs(np.sort(images.mean(axis=(1, 2, 3)) / 255) - ink).max() < 0.05


def test_loading_twice_gives_the_same(digits):
    again = load_dataset("digits", "a folder that is not looked at")
    for field in ("train_images", "val_labels", "test_images"):
        assert np.array_equal(getattr(again, field), getattr(digits, field))


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r"augserve\[train\]"):
        load_dataset("digits")
