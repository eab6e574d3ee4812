"""Bodies with a Content-Encoding: decompressed under a cap, so that a small body never becomes a large one."""

from __future__ import annotations

import zlib

from augserve.errors import MalformedRequestError, MediaTypeError, PayloadTooLargeError

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's codes of the two containers
ENCODINGS = ("identity", "gzip", "deflate")


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo the Content-Encoding of a body.

    Args:
        body: as it came; the caller bounds its length.
        encoding: the header's value; empty means identity.
        max_bytes: the most bytes that may come out; decompression stops there.

    Returns:
        The content.

    Raises:
        MediaTypeError: another encoding, or several.
        PayloadTooLargeError: more than max_bytes come out.
        MalformedRequestError: not such data, cut off, or with more behind its end.

    Example:
        >>> decompress(gzip.compress(b"{}"), "gzip", 100)
        b'{}'
    """
    name = encoding.strip().lower() or "identity"
    if name == "identity":
        return body
    if name not in _WINDOWS:
        raise MediaTypeError(f"expected Content-Encoding {', '.join(ENCODINGS)}; got {name[:80]}")
    stream = zlib.decompressobj(_WINDOWS[name])
    try:
        content = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise MalformedRequestError(f"expected a body compressed with {name}; {str(error)[:100]}") from None
    if len(content) > max_bytes:
        raise PayloadTooLargeError(
            f"expected a body of at most {max_bytes} bytes when decompressed; got more; send several requests"
        )
    if not stream.eof:
        raise MalformedRequestError(f"expected a whole body compressed with {name}; it is cut off")
    if stream.unused_data:  # members are not joined: one costs its sender 20 bytes, and us a copy of the rest
        raise MalformedRequestError(
            f"expected one compressed {name} stream; got {len(stream.unused_data)} more bytes behind its end"
        )
    return content
