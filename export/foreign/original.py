"""The file as it came, run on any number of rows: what a converted one is compared with."""

from __future__ import annotations

import numpy as np
from onnx import helper

from augserve.export.foreign.inputs import Array, Feed, Ports, rows_of, take_rows
from augserve.export.foreign.load import open_plain

Answer = list[Array]
_TYPES = {"float": "float32", "double": "float64"}


class Original:
    """A session of the file; where it was written for a number of rows, it runs in pieces of as many."""

    def __init__(self, content: bytes, ports: Ports, *, optimized: bool = True) -> None:
        self.ports = ports
        self._content = content
        self._session = open_plain(content, optimized=optimized)

    def unoptimized(self) -> Original:
        """Return the same without ONNX Runtime's optimizations, which round in another way."""
        return Original(self._content, self.ports, optimized=False)

    @property
    def types(self) -> dict[str, int]:
        """The element type of each output, as ONNX numbers it."""
        kinds = {
            node.name: node.type.removeprefix("tensor(").removesuffix(")") for node in self._session.get_outputs()
        }
        return {
            name: helper.np_dtype_to_tensor_dtype(np.dtype(_TYPES.get(kind, kind))) for name, kind in kinds.items()
        }

    def run(self, feed: Feed) -> Answer:
        """Return every output for these rows."""
        size = self.ports.fixed_rows
        if size is None:
            return list(self._session.run(None, feed))
        rows = rows_of(self.ports, feed)
        pieces = []
        for start in range(0, rows, size):
            places = np.minimum(np.arange(start, start + size), rows - 1)
            pieces.append(self._session.run(None, take_rows(self.ports, feed, places)))
        return [np.concatenate(parts)[:rows] for parts in zip(*pieces, strict=True)]
