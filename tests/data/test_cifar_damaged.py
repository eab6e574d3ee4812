"""CIFAR-10 files that are damaged, or of another set: a DataError that names the file, nothing else."""

from __future__ import annotations

import gzip
import pickle
import tarfile

import numpy as np
import pytest

from augserve.data.cifar import load_cifar10
from augserve.errors import DataError
from tests.data import formats

PY = "cifar-10-batches-py"
BIN = "cifar-10-batches-bin"
PY_TAR, BIN_TAR = "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"


@pytest.mark.parametrize("change", ["names", "no names", "not names", "binary names", "binary not ascii"])
def test_a_meta_file_of_another_set_is_refused(change, tmp_path, cifar_parts):
    binary = change.startswith("binary")
    files = (formats.binary_version if binary else formats.python_version)(cifar_parts)
    content = {
        "names": formats.python2_pickle({b"label_names": [b"apple"] * 10}),
        "no names": formats.python2_pickle({b"other": 1}),
        "not names": formats.python2_pickle({b"label_names": [1, 2]}),
        "binary names": b"apple\n" * 10,
        "binary not ascii": b"\xff" * 10,
    }[change]
    files["batches.meta.txt" if binary else "batches.meta"] = content
    formats.write_folder(tmp_path, files)
    with pytest.raises(DataError, match=r"batches\.meta"):
        load_cifar10(tmp_path)


def batch(**replace):
    content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 9]}
    content |= {key.encode(): value for key, value in replace.items()}
    return {key: value for key, value in content.items() if value is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (batch(labels=[0, 10]), r"labels 0\.\.9; got 0\.\.10"),
        (batch(labels=[-1, 0]), r"labels 0\.\.9; got -1\.\.0"),
        (batch(labels=[0, 2**70]), "data_batch_2"),
        (batch(labels=[0]), "expected 2 integer labels"),
        (batch(labels=[0, "1"]), "list of integers"),
        (batch(labels=[0, 1.0]), "list of integers"),
        (batch(labels=None), "labels is not there"),
        (batch(data=None), "data is not there"),
        (batch(data=np.zeros((2, 3071), np.uint8)), r"uint8 \(N, 3072\)"),
        (batch(data=np.zeros((2, 3072), np.int16)), r"got int16 \(2, 3072\)"),
        (batch(data=[1]), "got a list"),
        (batch(data=np.zeros((0, 3072), np.uint8), labels=[]), "at least 1 image"),
        ([1, 2], "pickled dict; got a list"),
    ],
)
def test_a_batch_of_another_content_is_refused_by_name(content, message, tmp_path, cifar_parts):
    files = formats.python_version(cifar_parts) | {"data_batch_2": pickle.dumps(content)}
    formats.write_folder(tmp_path, files)
    with pytest.raises(DataError, match=message) as caught:
        load_cifar10(tmp_path)
    assert "data_batch_2" in str(caught.value)


def cuts(size, n=40):
    """Return lengths from 0 to size - 1, dense at both ends."""
    return sorted({*range(12), *np.linspace(0, size - 1, n).astype(int).tolist(), *range(size - 12, size)})


@pytest.mark.parametrize("version", ["python", "binary"])
def test_a_batch_cut_short_anywhere_is_refused_by_name(version, tmp_path, cifar_parts):
    files = (formats.python_version if version == "python" else formats.binary_version)(cifar_parts)
    name = "data_batch_3" if version == "python" else "data_batch_3.bin"
    formats.write_folder(tmp_path, files)
    whole = files[name]
    row = 3073  # a binary file cut between rows is a smaller file, which no reader can tell
    for length in cuts(len(whole)):
        if version == "binary" and length and length % row == 0:
            continue
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(DataError, match="data_batch_3"):
            load_cifar10(tmp_path)


@pytest.mark.parametrize("archive", [PY_TAR, BIN_TAR])
def test_an_archive_cut_short_anywhere_is_refused_by_name(archive, tmp_path, cifar_parts):
    parts = formats.CifarParts(cifar_parts.images[:, :2], cifar_parts.labels[:, :2])
    files = formats.python_version(parts) if archive == PY_TAR else formats.binary_version(parts)
    path = formats.write_archive(tmp_path / archive, PY if archive == PY_TAR else BIN, files)
    whole = path.read_bytes()
    for length in cuts(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=archive):
            load_cifar10(tmp_path)


def test_an_archive_with_flipped_bits_is_refused_or_read_as_it_was(tmp_path, cifar_parts):
    path = formats.write_archive(tmp_path / PY_TAR, PY, formats.python_version(cifar_parts))
    whole, original = path.read_bytes(), load_cifar10(tmp_path)
    refused = 0
    for position in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            got = load_cifar10(tmp_path)
        except DataError:
            refused += 1
        else:  # a bit that means nothing, as in the archive's name within gzip's header
            assert np.array_equal(got.train_images, original.train_images)
            assert np.array_equal(got.test_labels, original.test_labels)
    assert refused > 30


def test_an_archive_with_a_link_for_a_file_is_refused(tmp_path):
    with tarfile.open(tmp_path / PY_TAR, "w:gz") as tar:
        link = tarfile.TarInfo(f"{PY}/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with pytest.raises(DataError, match="data_batch_1"):
        load_cifar10(tmp_path)


def test_a_folder_in_a_files_place_is_missing(tmp_path, cifar_parts):
    formats.write_folder(tmp_path, formats.python_version(cifar_parts))
    (tmp_path / "test_batch").unlink()
    (tmp_path / "test_batch").mkdir()
    with pytest.raises(DataError, match="looked for test_batch"):
        load_cifar10(tmp_path)


def test_other_members_and_padding_of_an_archive_are_passed_over(tmp_path, cifar_parts):
    path = tmp_path / PY_TAR
    with gzip.open(path, "wb", compresslevel=1) as stream:
        with tarfile.open(fileobj=stream, mode="w") as tar:
            folder = tarfile.TarInfo(PY)
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            others = {"readme.html": b"<html>", **formats.python_version(cifar_parts)}
            for name, content in others.items():
                formats.add_member(tar, f"{PY}/{name}", content)
            formats.add_member(tar, "elsewhere/data_batch_1", b"not this one")
        stream.write(bytes(2_000_000))
    assert np.array_equal(load_cifar10(tmp_path).test_images, cifar_parts.images[5])


def test_a_file_twice_in_an_archive_is_refused(tmp_path, cifar_parts):
    with tarfile.open(tmp_path / PY_TAR, "w:gz") as tar:
        for _ in range(2):
            formats.add_member(tar, f"{PY}/data_batch_1", b"")
    with pytest.raises(DataError, match="one regular file data_batch_1"):
        load_cifar10(tmp_path)
