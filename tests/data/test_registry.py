"""The table of sets, the type they return, and that importing the package stays light."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from augserve.data import ImageSet, list_datasets, load_dataset
from augserve.data.image_set import LabelledImages, hold_out_validation
from augserve.errors import ConfigurationError, DataError


def test_the_names_are_listed():
    assert list_datasets() == ("digits", "cifar10", "fashion-mnist")


@pytest.mark.parametrize("name", ["", "CIFAR10", "imagenet"])
def test_an_unknown_name_lists_the_choices(name):
    with pytest.raises(ConfigurationError, match="cifar10, digits, fashion-mnist"):
        load_dataset(name)


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_a_set_that_needs_files_asks_for_the_folder(name):
    with pytest.raises(DataError, match="--data-dir"):
        load_dataset(name)


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_a_folder_that_is_not_there_or_is_a_file_is_named(name, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for folder, found in ((tmp_path / "none", "found nothing"), (file, "found a file")):
        with pytest.raises(DataError, match=found) as caught:
            load_dataset(name, folder)
        assert str(folder) in str(caught.value)


def test_importing_the_package_loads_neither_torch_nor_scikit_learn():
    code = (
        "import sys, augserve.data; augserve.data.list_datasets(); "
        "assert not {'torch', 'sklearn', 'PIL'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def tiny() -> ImageSet:
    images, labels = np.zeros((3, 1, 2, 4), np.uint8), np.arange(3)
    return ImageSet(
        "tiny", images, labels, images, labels, images, labels, ("a", "b", "c"), (0.5,), (0.5,), False, 0
    )


def test_the_shape_is_that_of_one_image():
    assert tiny().shape == (1, 2, 4)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("val_labels", np.arange(2), r"int64 labels \(3,\)"),
        ("val_labels", np.arange(3, dtype=np.int32), "int64 labels"),
        ("test_labels", np.array([0, 1, 3]), r"labels 0\.\.2; got 0\.\.3"),
        ("test_labels", np.array([0, -1, 2]), r"labels 0\.\.2; got -1\.\.2"),
        ("test_images", np.zeros((3, 3, 2, 4), np.uint8), "of one shape"),
        ("train_images", np.zeros((3, 1, 2, 4), np.float32), "uint8 images"),
        ("mean", (0.5, 0.5), "each of the 1 channels"),
        ("std", (0.0,), "std > 0"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(field, value, message):
    with pytest.raises(DataError, match=message):
        replace(tiny(), **{field: value})


def test_validation_takes_a_tenth_of_every_class():
    labels = np.repeat(np.arange(4), [10, 20, 30, 200])
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    kept, held = hold_out_validation(LabelledImages(images, labels))
    assert np.bincount(held.labels).tolist() == [1, 2, 3, 20]
    assert len(kept.labels) + len(held.labels) == len(labels)
