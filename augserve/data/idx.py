"""The idx format of MNIST and Fashion-MNIST: a four-byte magic number, big-endian sizes, then the bytes.

Source: Y. LeCun, C. Cortes and C. Burges, the MNIST database, "File formats": the magic number is 0, 0, a
code of the type (8: unsigned byte) and the number of dimensions.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from augserve.data.reading import reading
from augserve.errors import DataError

_UNSIGNED_BYTE = 8


def read_idx(path: Path, item_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, plain or gzip (by the suffix .gz).

    Args:
        path: the file.
        item_shape: the sizes after the first: (28, 28) for images, () for labels.

    Returns:
        uint8 (N, *item_shape).

    Raises:
        DataError: a file that cannot be read, another magic number, other sizes, or fewer or more bytes.

    Example:
        >>> labels = read_idx(Path("t10k-labels-idx1-ubyte.gz"), ())  # doctest: +SKIP
    """
    n_dims = 1 + len(item_shape)
    expected = f"an idx file of unsigned bytes (N{''.join(f', {size}' for size in item_shape)})"
    with reading(path, expected), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        header = stream.read(4 + 4 * n_dims)
        if len(header) < 4 + 4 * n_dims:
            raise DataError(f"{path}: expected {expected}; the file ends within its header")
        magic, *sizes = struct.unpack(f">4s{n_dims}I", header)
        if magic != bytes((0, 0, _UNSIGNED_BYTE, n_dims)):
            raise DataError(
                f"{path}: expected {expected}, magic number 0x{_UNSIGNED_BYTE:06x}{n_dims:02x}; got 0x{magic.hex()}"
            )
        if tuple(sizes[1:]) != item_shape:
            raise DataError(f"{path}: expected {expected}; its header says {tuple(sizes)}")
        content = stream.read()
        if len(content) != math.prod(sizes):
            raise DataError(
                f"{path}: expected {math.prod(sizes)} bytes after the header for {tuple(sizes)}; got {len(content)}"
            )
    flat = np.frombuffer(content, dtype=np.uint8).copy()  # writable, as torch wants it
    items: npt.NDArray[np.uint8] = flat.reshape(-1, *item_shape)
    return items
