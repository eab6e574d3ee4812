"""Fashion-MNIST in every form, and idx files that are damaged."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augserve.data import load_dataset
from augserve.data.fashion_mnist import load_fashion_mnist
from augserve.data.idx import read_idx
from augserve.errors import DataError
from tests.data import formats


def strips(folder, parts):
    formats.write_strips(folder / "fashion_mnist_train.npz", *parts["train"])
    formats.write_strips(folder / "fashion_mnist_test.npz", *parts["t10k"])


def idx_files(sub, *, compress):
    return lambda f, p: formats.write_folder(f / sub, formats.fashion_files(p, compress=compress))


FORMS = {
    **{
        f"{sub or 'data_dir'}, {'gz' if compress else 'plain'}": idx_files(sub, compress=compress)
        for sub in ("", "FashionMNIST/raw", "fashion-mnist")
        for compress in (True, False)
    },
    "strips": strips,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_and_labels(form, tmp_path, fashion_parts):
    FORMS[form](tmp_path, fashion_parts)
    got = load_dataset("fashion-mnist", str(tmp_path))
    assert got.shape == (1, 28, 28)
    assert (got.flip, got.crop_padding, len(got.classes)) == (True, 2, 10)
    images, labels = fashion_parts["t10k"]
    assert np.array_equal(got.test_images[:, 0], images)
    assert np.array_equal(got.test_labels, labels)
    images, labels = fashion_parts["train"]
    seen = {one.tobytes(): int(label) for one, label in zip(images, labels, strict=True)}
    both = np.concatenate([got.train_images, got.val_images])
    assert {one.tobytes() for one in both} == set(seen)
    assert [seen[one.tobytes()] for one in got.train_images] == got.train_labels.tolist()
    assert [seen[one.tobytes()] for one in got.val_images] == got.val_labels.tolist()
    assert np.bincount(got.val_labels).tolist() == [1] * 10
    assert got.test_images.flags.writeable


def test_plain_and_compressed_files_may_be_mixed(tmp_path, fashion_parts):
    plain = formats.fashion_files(fashion_parts, compress=False)
    packed = formats.fashion_files(fashion_parts, compress=True)
    names = list(plain)
    formats.write_folder(
        tmp_path, {n: plain[n] for n in names[:2]} | {f"{n}.gz": packed[f"{n}.gz"] for n in names[2:]}
    )
    assert len(load_fashion_mnist(tmp_path).test_labels) == 20


def test_nothing_there_says_what_where_and_from_whom(tmp_path):
    with pytest.raises(DataError) as caught:
        load_fashion_mnist(tmp_path)
    for words in ("train-images-idx3-ubyte[.gz]", "fashion_mnist_train.npz", "FashionMNIST", "Zalando"):
        assert words in str(caught.value)


@pytest.mark.parametrize("name", ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
def test_a_missing_file_is_named(name, tmp_path, fashion_parts):
    formats.write_folder(tmp_path, formats.fashion_files(fashion_parts, compress=False))
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"looked for {name}"):
        load_fashion_mnist(tmp_path)


def test_one_strip_file_without_the_other_is_missing(tmp_path, fashion_parts):
    strips(tmp_path, fashion_parts)
    (tmp_path / "fashion_mnist_train.npz").unlink()
    with pytest.raises(DataError, match=r"looked for fashion_mnist_train\.npz"):
        load_fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", formats.idx(np.zeros(59)), "expected 60 labels"),
        ("train-labels-idx1-ubyte", formats.idx(np.full(60, 10)), r"labels 0\.\.9; got 10\.\.10"),
        (
            "train-labels-idx1-ubyte",
            formats.idx(np.zeros(60), code=13),
            "magic number 0x00000801; got 0x00000d01",
        ),
        (
            "train-labels-idx1-ubyte",
            formats.idx(np.zeros((60, 1))),
            "magic number 0x00000801; got 0x00000802",
        ),
        ("train-images-idx3-ubyte", formats.idx(np.zeros((60, 28, 27))), r"header says \(60, 28, 27\)"),
        ("train-images-idx3-ubyte", formats.idx(np.zeros((60, 28, 28))) + b"x", "bytes after the header"),
        ("train-images-idx3-ubyte", gzip.compress(b"", mtime=0), "magic number|ends within its header"),
    ],
)
def test_a_file_of_another_content_is_refused_by_name(name, content, message, tmp_path, fashion_parts):
    formats.write_folder(tmp_path, formats.fashion_files(fashion_parts, compress=False) | {name: content})
    with pytest.raises(DataError, match=message) as caught:
        load_fashion_mnist(tmp_path)
    assert name in str(caught.value)


def test_sets_without_images_are_refused(tmp_path):
    empty = {part: (np.zeros((0, 28, 28)), np.zeros(0)) for part in ("train", "t10k")}
    formats.write_folder(tmp_path, formats.fashion_files(empty, compress=False))
    with pytest.raises(DataError, match="at least 1 image"):
        load_fashion_mnist(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_cut_short_anywhere_is_refused_by_name(suffix, tmp_path):
    path = tmp_path / f"t10k-labels-idx1-ubyte{suffix}"
    whole = formats.idx(np.arange(200) % 10)
    whole = gzip.compress(whole) if suffix else whole
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="t10k-labels"):
            read_idx(path, ())
    path.write_bytes(whole)
    assert np.array_equal(read_idx(path, ()), np.arange(200) % 10)


@given(st.data())
def test_a_changed_gz_file_is_never_read_as_other_labels(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed-labels.gz"
    labels = np.arange(200) % 10
    content = bytearray(gzip.compress(formats.idx(labels)))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        got = read_idx(path, ())
    except DataError:
        return
    assert np.array_equal(got, labels)  # a byte of gzip's header that says nothing of the content


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no-such-file"):
        read_idx(tmp_path / "no-such-file", ())
