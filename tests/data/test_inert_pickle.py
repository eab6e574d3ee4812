"""The pickle reader: arrays come back, nothing else is reached, and no stream raises any other error."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from augserve.data import inert_pickle
from augserve.data.inert_pickle import read_pickle
from augserve.errors import DataError
from tests.data.formats import python2_pickle

integer_arrays = npst.arrays(
    npst.integer_dtypes(endianness="?") | npst.unsigned_integer_dtypes(endianness="?"),
    npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
)


@given(integer_arrays, st.integers(0, 5), st.booleans())
def test_integer_arrays_come_back_under_every_protocol(array, protocol, fortran):
    array = np.asfortranarray(array) if fortran else array
    got = read_pickle(pickle.dumps({"a": array}, protocol=protocol), "x")["a"]
    assert got.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(got, array)
    assert got.flags.writeable


leaves = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False)


@given(st.dictionaries(st.text(), leaves | st.lists(leaves)), st.integers(0, 5))
def test_plain_values_come_back_under_every_protocol(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol=protocol), "x") == value


def test_python_2_streams_are_read_without_a_warning():
    array = np.arange(600, dtype=np.uint8).reshape(2, 300)
    got = read_pickle(python2_pickle({b"data": array, b"labels": [3, 0], b"name": b"\xe9"}), "x")
    assert np.array_equal(got["data"], array)
    assert (got["labels"], got["name"]) == ([3, 0], b"\xe9")


def test_a_text_pickle_of_python_2_is_read():
    assert read_pickle(b"(dp1\nS'label_names'\np2\n(lp3\nS'cat'\np4\nas.", "x") == {"label_names": [b"cat"]}


class Reduce:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "hostile",
    [
        Reduce(os.system, "echo reached > reached"),
        Reduce(subprocess.check_call, ["touch", "reached"]),
        Reduce(eval, "open('reached', 'w')"),
        Reduce(exec, "open('reached', 'w')"),
        Reduce(open, "reached", "w"),
        Reduce(getattr, "text", "encode"),
        Reduce(__import__, "antigravity"),
        Reduce(np.load, "reached"),
        OrderedDict(a=1),
        partial(print),
        np.float32,
        {1, 2}.__class__,
    ],
)
@pytest.mark.parametrize("protocol", range(6))
def test_every_other_name_is_refused_and_not_run(hostile, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data_batch_1: refused, because this pickle names"):
        read_pickle(pickle.dumps({"data": hostile}, protocol=protocol), "data_batch_1")
    assert not list(tmp_path.iterdir())


def test_the_refusal_names_the_function():
    with pytest.raises(DataError, match=f"{os.system.__module__}.system"):
        read_pickle(pickle.dumps(Reduce(os.system, "true")), "x")


@pytest.mark.parametrize(
    "stream",
    [
        b"cnumpy\ndtype.",  # a bare name
        b"}X\x01\x00\x00\x00acnumpy\ndtype\ns.",  # a bare name as a value
        b"}X\x01\x00\x00\x00acnumpy\ndtype\n(tRs.",  # called with nothing
        b"}X\x01\x00\x00\x00acnumpy\ndtype\n(tR(tRs.",  # called twice
        b"}X\x01\x00\x00\x00acnumpy\nndarray\n(K\x01tRs.",  # an array made directly
        b"}cnumpy\ndtype\nK\x01s.",  # a name as a key
        b"}(K\x01tK\x01s.",  # a tuple as a key
        b"}]K\x01s.",  # a key that cannot be hashed
        b"}K\x01K\x02s.",  # a number as a key
        b"}X\x01\x00\x00\x00aP0\ns.",  # a persistent id
        b"}X\x01\x00\x00\x00a\x82\x01s.",  # an extension code
        b"}X\x01\x00\x00\x00a\x97s.",  # an out-of-band buffer
        b"cnumpy\ndtype\n}X\x04\x00\x00\x00nameK\x01sb.",  # state for a bare name
        b"cnumpy\ndtype\n(t\x81.",  # a new object of a name that is no class
        b"r\xff\xff\xff\xff.",  # a memo of four thousand million places
        b"}r\xff\xff\xff\xff.",
        b"}p999999999999\n.",
        b"}\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # an endless bytearray
        b"}\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # endless bytes
        b"\x80\xff}.",  # a protocol of the future
        b"}.trailing",
        b"",
        b".",
        b"\xff" * 50,
        b"I" + b"9" * 10_000 + b"\n.",
        b"(" * 100_000 + b".",
        b"]" + b"\x85" * 300_000 + b"K\x01s.",
        b"}" + b")" + b"\x85" * 300_000 + b"K\x01s.",  # a key too deep to be hashed
    ],
)
def test_streams_made_by_hand_give_data_errors(stream):
    with pytest.raises(DataError, match="data_batch_1"):
        read_pickle(stream, "data_batch_1")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(2, np.float32),
        np.array([{}, None], dtype=object),
        np.array(["a"]),
        np.zeros(2, [("a", "u1")]),
        np.zeros(2, "M8[s]"),
        np.uint8(3),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_anything_but_integers_are_refused(array, protocol):
    with pytest.raises(DataError):
        read_pickle(pickle.dumps({"a": array}, protocol=protocol), "x")


@pytest.mark.parametrize("size", [0, 5, 7, 2**31 - 1, -6])
def test_an_array_whose_sizes_do_not_match_its_bytes_is_refused(size):
    stream = python2_pickle({b"a": np.zeros((6, 1), np.uint8)})
    assert stream.count(struct.pack("<i", 6)) == 2  # the size, and the length of the bytes, which is read first
    changed = stream.replace(b"J" + struct.pack("<i", 6), b"J" + struct.pack("<i", size))
    with pytest.raises(DataError, match="array"):
        read_pickle(changed, "x")


WHOLE = [
    python2_pickle({b"data": np.arange(12, dtype=np.uint8).reshape(2, 6), b"labels": [1, 2]}),
    *(pickle.dumps({"data": np.arange(12, dtype=np.uint8), "labels": [1, 2]}, protocol=n) for n in range(6)),
]


@pytest.mark.parametrize("whole", WHOLE)
def test_a_stream_cut_short_anywhere_is_refused(whole):
    for length in range(len(whole)):
        with pytest.raises(DataError):
            read_pickle(whole[:length], "x")


@given(st.sampled_from(WHOLE), st.data())
def test_a_changed_stream_is_read_or_refused_but_never_raises_otherwise(whole, data):
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = read_pickle(bytes(content), "x")
    except DataError:
        return
    assert type(got) is dict


def test_records_keep_no_state_between_files():
    before = set(vars(inert_pickle._Record))
    with pytest.raises(DataError):
        read_pickle(b"cnumpy\ndtype\n}X\x08\x00\x00\x00__call__K\x01sb.", "x")
    assert set(vars(inert_pickle._Record)) == before
