"""multipart/form-data (RFC 7578) from bytes already in memory: names and contents of its parts."""

from __future__ import annotations

import logging

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from augserve.errors import MalformedRequestError

MAX_PARTS = 20_000

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # bad forms are the sender's affair, not the log's


def split_parts(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    r"""Cut a form into its parts.

    Args:
        body: the whole request body.
        content_type: the Content-Type header, which names the boundary.

    Returns:
        (field name, content) of each part, in order.

    Raises:
        MalformedRequestError: no boundary, a part without a name, a form that breaks off, or too many parts.

    Example:
        >>> body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--'
        >>> split_parts(body, "multipart/form-data; boundary=x")
        [('a', b'1')]
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise MalformedRequestError("expected multipart/form-data with a boundary; the Content-Type names none")
    collector = _Collector()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.part_begin,
                "on_header_field": collector.header_field,
                "on_header_value": collector.header_value,
                "on_header_end": collector.header_end,
                "on_part_data": collector.part_data,
                "on_part_end": collector.part_end,
                "on_end": collector.end,
            },
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise MalformedRequestError(f"expected well-formed multipart/form-data; {str(error)[:150]}") from None
    if not collector.ended:
        raise MalformedRequestError("expected multipart/form-data up to its last boundary; the body breaks off")
    return collector.parts


class _Collector:
    """Gathers what the parser finds."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.ended = False
        self._field = bytearray()
        self._value = bytearray()
        self._content = bytearray()
        self._name: bytes | None = None

    def part_begin(self) -> None:
        self._name = None
        self._content = bytearray()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._name = parse_options_header(bytes(self._value))[1].get(b"name")
        self._field.clear()
        self._value.clear()

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def part_end(self) -> None:
        if self._name is None:
            raise MalformedRequestError("expected a name in the Content-Disposition of every part; one has none")
        if len(self.parts) >= MAX_PARTS:
            raise MalformedRequestError(f"expected at most {MAX_PARTS} parts in a form; got more")
        self.parts.append((self._name.decode("utf-8", "replace"), bytes(self._content)))

    def end(self) -> None:
        self.ended = True
