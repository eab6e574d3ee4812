"""Strip files: lossless both ways, and refused when anything in them does not fit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augserve.data.strips import read_strips
from augserve.errors import DataError
from tests.data.formats import write_strips

RNG = np.random.default_rng(3)
COLOUR = RNG.integers(0, 256, (10, 4, 6, 3), dtype=np.uint8)
LABELS = np.arange(10)


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_colour_images_come_back_exactly(rows, tmp_path):
    images, labels = read_strips(write_strips(tmp_path / "a.npz", COLOUR, LABELS, rows), (3, 4, 6), 10)
    assert np.array_equal(images, COLOUR.transpose(0, 3, 1, 2))
    assert np.array_equal(labels, LABELS)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)


def test_grey_images_come_back_exactly(tmp_path):
    images, _ = read_strips(write_strips(tmp_path / "a.npz", COLOUR[..., 0], LABELS), (1, 4, 6), 10)
    assert np.array_equal(images[:, 0], COLOUR[..., 0])


def other_pickle():
    return np.array([{"a": 1}], dtype=object)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"labels": None}, "labels is not there"),
        ({"webp": None, "shape": None}, "webp, shape is not there"),
        ({"labels": np.arange(9)}, "expected 10 integer labels"),
        ({"labels": np.arange(10) + 1}, r"labels 0\.\.9; got 1\.\.10"),
        ({"labels": np.linspace(0, 1, 10)}, "integer labels"),
        ({"labels": other_pickle()}, "a.npz"),
        ({"shape": np.array([10, 4, 6])}, r"expected shape \(N, 4, 6, 3\); got \[10, 4, 6\]"),
        ({"shape": np.array([10, 4, 7, 3])}, "expected shape"),
        ({"shape": np.array([10.0, 4, 6, 3])}, "expected shape"),
        ({"shape": np.array(10)}, "expected shape"),
        ({"shape": np.array([], int)}, "expected shape"),
        ({"shape": np.array([[10, 4, 6, 3]])}, "expected shape"),
        ({"shape": np.array([0, 4, 6, 3]), "labels": np.arange(0)}, "at least 1 image"),
        ({"shape": np.array([-1, 4, 6, 3])}, "at least 1 image"),
        (
            {"shape": np.array([11, 4, 6, 3]), "labels": np.zeros(11, int)},
            "expected 11 images; its strips hold 10",
        ),
        ({"shape": np.array([9, 4, 6, 3]), "labels": np.zeros(9, int)}, "expected 9 images"),
        ({"webp": np.zeros(100, np.uint8)}, "offsets"),
        ({"webp": np.zeros(100, np.float32)}, "webp uint8"),
        ({"offsets": np.array([], int)}, "offsets"),
        ({"offsets": np.array([0.0, 1.0])}, "integer offsets"),
        ({"offsets": np.array([0, 5, 3])}, "offsets"),
        ({"offsets": np.array([[0, 5]])}, "offsets"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(replace, message, tmp_path):
    path = write_strips(tmp_path / "a.npz", COLOUR, LABELS, replace=replace)
    with pytest.raises(DataError, match=message) as caught:
        read_strips(path, (3, 4, 6), 10)
    assert str(path) in str(caught.value)


def test_strips_of_another_width_are_refused(tmp_path):
    path = write_strips(tmp_path / "a.npz", COLOUR, LABELS, replace={"shape": np.array([10, 4, 5, 3])})
    with pytest.raises(DataError, match="came a strip of 32x6 pixels"):
        read_strips(path, (3, 4, 5), 10)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", b"\x80\x04}."])
def test_a_file_that_is_no_npz_is_refused(content, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz"):
        read_strips(path, (3, 4, 6), 10)


def test_a_single_array_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, COLOUR)
    path = tmp_path / "a.npz"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="got a single array"):
        read_strips(path, (3, 4, 6), 10)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = write_strips(tmp_path / "a.npz", COLOUR, LABELS)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.npz"):
            read_strips(path, (3, 4, 6), 10)


@given(st.data())
def test_a_changed_file_is_never_read_as_other_images(tmp_path_factory, data):
    path = write_strips(tmp_path_factory.getbasetemp() / "changed.npz", COLOUR, LABELS)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        images, labels = read_strips(path, (3, 4, 6), 10)
    except DataError:
        return
    assert np.array_equal(images, COLOUR.transpose(0, 3, 1, 2))
    assert np.array_equal(labels, LABELS)
