"""CIFAR-10 in every form: equal pixels, missing files, damaged files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from augserve.data import ImageSet, load_dataset
from augserve.data.cifar import load_cifar10
from augserve.errors import DataError
from tests.data import formats

PY, BIN = "cifar-10-batches-py", "cifar-10-batches-bin"
PY_TAR, BIN_TAR = "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"


def strips(folder, parts):
    nhwc = parts.images.transpose(0, 1, 3, 4, 2)
    formats.write_strips(folder / "cifar10_train.npz", np.concatenate(nhwc[:5]), np.concatenate(parts.labels[:5]))
    formats.write_strips(folder / "cifar10_test.npz", nhwc[5], parts.labels[5])


def pickled(protocol):
    return lambda value: pickle.dumps(value, protocol=protocol)


FORMS = {
    "python folder": lambda f, p: formats.write_folder(f / PY, formats.python_version(p)),
    "python, data_dir itself": lambda f, p: formats.write_folder(f, formats.python_version(p)),
    "python archive": lambda f, p: formats.write_archive(f / PY_TAR, PY, formats.python_version(p)),
    "python archive, ./": lambda f, p: formats.write_archive(f / PY_TAR, f"./{PY}", formats.python_version(p)),
    "binary folder": lambda f, p: formats.write_folder(f / BIN, formats.binary_version(p)),
    "binary, data_dir itself": lambda f, p: formats.write_folder(f, formats.binary_version(p)),
    "binary archive": lambda f, p: formats.write_archive(f / BIN_TAR, BIN, formats.binary_version(p)),
    "strips": strips,
    **{
        f"python 3, bytes, protocol {n}": lambda f, p, n=n: formats.write_folder(
            f / PY, formats.python_version(p, pickled(n))
        )
        for n in range(6)
    },
    **{
        f"python 3, text, protocol {n}": lambda f, p, n=n: formats.write_folder(
            f / PY, formats.python_version(p, formats.text_keys(n))
        )
        for n in range(6)
    },
}


def in_official_order(got: ImageSet) -> tuple[list[bytes], list[int]]:
    """Return train and validation together, sorted by content, then labels alike."""
    images = [one.tobytes() for one in (*got.train_images, *got.val_images)]
    labels = [*got.train_labels.tolist(), *got.val_labels.tolist()]
    pairs = sorted(zip(images, labels, strict=True))
    return [image for image, _ in pairs], [label for _, label in pairs]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_and_labels(form, tmp_path, cifar_parts):
    FORMS[form](tmp_path, cifar_parts)
    got = load_dataset("cifar10", str(tmp_path))
    assert got.shape == (3, 32, 32)
    assert (got.flip, got.crop_padding, got.classes) == (True, 2, tuple(formats.NAMES))
    assert np.array_equal(got.test_images, cifar_parts.images[5])
    assert np.array_equal(got.test_labels, cifar_parts.labels[5])
    assert np.bincount(got.train_labels).tolist() == [9] * 10
    assert np.bincount(got.val_labels).tolist() == [1] * 10
    expected = sorted(
        zip(
            [one.tobytes() for one in np.concatenate(cifar_parts.images[:5])],
            np.concatenate(cifar_parts.labels[:5]).tolist(),
            strict=True,
        )
    )
    assert in_official_order(got) == ([i for i, _ in expected], [label for _, label in expected])
    assert got.test_images.flags.writeable


def test_the_split_is_the_same_in_every_form(tmp_path, cifar_parts):
    sets = []
    for i, write in enumerate((FORMS["python folder"], FORMS["binary archive"], FORMS["strips"])):
        folder = tmp_path / str(i)
        folder.mkdir()
        write(folder, cifar_parts)
        sets.append(load_cifar10(folder))
    for other in sets[1:]:
        assert np.array_equal(other.train_images, sets[0].train_images)
        assert np.array_equal(other.val_labels, sets[0].val_labels)


def test_batches_of_one_image_are_accepted_and_writable(tmp_path, cifar_parts):
    parts = formats.CifarParts(cifar_parts.images[:, :1], cifar_parts.labels[:, :1])
    formats.write_folder(tmp_path, formats.binary_version(parts))
    got = load_cifar10(tmp_path)
    assert len(got.train_labels) + len(got.val_labels) == 5
    assert got.test_images.flags.writeable


def test_nothing_there_says_what_where_and_from_whom(tmp_path):
    (tmp_path / PY).mkdir()  # an empty folder is no data set
    with pytest.raises(DataError) as caught:
        load_cifar10(tmp_path)
    message = str(caught.value)
    for words in (PY, BIN, PY_TAR, BIN_TAR, "data_batch_3", "cifar10_train.npz", "Krizhevsky", str(tmp_path)):
        assert words in message


@pytest.mark.parametrize("form", ["python folder", "binary folder", "python archive", "binary archive"])
@pytest.mark.parametrize("number", [1, 5])
def test_a_missing_batch_is_named_and_nothing_partial_comes(form, number, tmp_path, cifar_parts):
    make = formats.python_version if "python" in form else formats.binary_version
    files = make(cifar_parts)
    name = f"data_batch_{number}" + ("" if "python" in form else ".bin")
    del files[name]
    folder = PY if "python" in form else BIN
    if "archive" in form:
        formats.write_archive(tmp_path / (PY_TAR if folder == PY else BIN_TAR), folder, files)
    else:
        formats.write_folder(tmp_path / folder, files)
    with pytest.raises(DataError, match=rf"looked for {name};"):
        load_cifar10(tmp_path)


def test_one_strip_file_without_the_other_is_missing(tmp_path, cifar_parts):
    strips(tmp_path, cifar_parts)
    (tmp_path / "cifar10_test.npz").unlink()
    with pytest.raises(DataError, match=r"looked for cifar10_test\.npz"):
        load_cifar10(tmp_path)


def test_without_the_meta_file_the_images_still_load(tmp_path, cifar_parts):
    formats.write_folder(tmp_path, formats.python_version(cifar_parts))
    (tmp_path / "batches.meta").unlink()
    assert len(load_cifar10(tmp_path).test_labels) == 20


def test_integer_label_arrays_and_fortran_order_are_read(tmp_path, cifar_parts):
    flat = cifar_parts.images[5].reshape(20, -1)
    content = {"data": np.asfortranarray(flat), "labels": cifar_parts.labels[5].astype(">i4")}
    files = formats.python_version(cifar_parts)
    for protocol in (2, 5):
        formats.write_folder(tmp_path, files | {"test_batch": pickle.dumps(content, protocol=protocol)})
        got = load_cifar10(tmp_path)
        assert np.array_equal(got.test_images, cifar_parts.images[5])
        assert np.array_equal(got.test_labels, cifar_parts.labels[5])
