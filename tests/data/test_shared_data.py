"""The real sets: counts, classes, means and standard deviations as published."""

from __future__ import annotations

import numpy as np
import pytest

from augserve.data import load_dataset


@pytest.mark.parametrize(
    ("name", "counts", "shape", "tolerance"),
    [
        ("cifar10", (50_000, 10_000), (3, 32, 32), 1e-7),  # published to eight decimals
        ("fashion-mnist", (60_000, 10_000), (1, 28, 28), 1e-4),  # published to four
    ],
)
def test_the_real_set_is_whole(shared_data, name, counts, shape, tolerance):
    n_train, n_test = counts
    got = load_dataset(name, shared_data)
    assert got.shape == shape
    assert np.bincount(got.train_labels).tolist() == [n_train * 9 // 100] * 10
    assert np.bincount(got.val_labels).tolist() == [n_train // 100] * 10
    assert np.bincount(got.test_labels).tolist() == [n_test // 10] * 10
    values = np.arange(256) / 255
    for channel in range(shape[0]):
        seen = sum(
            np.bincount(images[:, channel].ravel(), minlength=256) for images in (got.train_images, got.val_images)
        )
        mean = (seen * values).sum() / seen.sum()
        std = np.sqrt((seen * (values - mean) ** 2).sum() / seen.sum())
        assert mean == pytest.approx(got.mean[channel], abs=tolerance)
        assert std == pytest.approx(got.std[channel], abs=tolerance)
