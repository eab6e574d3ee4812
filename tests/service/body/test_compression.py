"""Decompression under a cap: what was compressed comes back, and nothing larger than allowed is ever made."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augserve.errors import MalformedRequestError, MediaTypeError, PayloadTooLargeError
from augserve.service.body.compression import decompress

COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes, "": bytes}
SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)


@SETTINGS
@given(content=st.binary(max_size=300), encoding=st.sampled_from(sorted(COMPRESS)))
def test_what_was_compressed_comes_back(content: bytes, encoding: str) -> None:
    assert decompress(COMPRESS[encoding](content), encoding, max(len(content), 1)) == content


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", " x-gzip ", "deflate"])
def test_the_cap_is_exact(encoding: str) -> None:
    body = COMPRESS["deflate" if encoding == "deflate" else "gzip"](b"a" * 1000)
    assert len(decompress(body, encoding, 1000)) == 1000
    with pytest.raises(PayloadTooLargeError, match="at most 999 bytes when decompressed"):
        decompress(body, encoding, 999)


def test_a_bomb_takes_no_more_memory_than_the_cap() -> None:
    bomb = gzip.compress(bytes(100 * 2**20))
    assert len(bomb) < 2**18
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLargeError):
            decompress(bomb, "gzip", 2**20)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_every_cut_and_every_byte_more_is_malformed(encoding: str) -> None:
    body = COMPRESS[encoding](b"some content")
    for length in range(len(body)):
        with pytest.raises(MalformedRequestError, match="cut off"):
            decompress(body[:length], encoding, 100)
    with pytest.raises(MalformedRequestError, match=f"got {len(body)} more bytes"):
        decompress(body + body, encoding, 100)


@SETTINGS
@given(body=st.binary(max_size=60), encoding=st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_are_content_or_malformed(body: bytes, encoding: str) -> None:
    with contextlib.suppress(MalformedRequestError, PayloadTooLargeError):
        assert len(decompress(body, encoding, 100)) <= 100


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd", "x" * 999])
def test_other_encodings_are_not_served(encoding: str) -> None:
    with pytest.raises(MediaTypeError, match="expected Content-Encoding identity, gzip, deflate") as caught:
        decompress(b"", encoding, 100)
    assert len(str(caught.value)) < 200
