"""The two official versions of CIFAR-10's files, in a folder or in a .tar.gz that is never extracted to disk.

Source: the CIFAR-10 page of the University of Toronto, "Dataset layout". Python version: pickled dicts with
``data``, uint8 (N, 3072), and ``labels``, a list of N integers. Binary version: rows of 1 label byte and
3,072 pixel bytes. In both a row of pixels is a (3, 32, 32) image in C order.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from augserve.data.image_set import LabelledImages
from augserve.data.inert_pickle import read_pickle
from augserve.data.reading import check_labels, read_file, reading
from augserve.errors import DataError

SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Version:
    """One official version of the files.

    Args:
        folder: the folder's name, also inside the archive.
        archive: the archive's name.
        needed: the files without which it is not whole, the test batch last.
        meta: the file of the class names, checked where it is there.
        decode: (content, source, number of classes) -> images and labels of one file.
        class_names: (content of the meta file, source) -> class names.
    """

    folder: str
    archive: str
    needed: tuple[str, ...]
    meta: str
    decode: Callable[[bytes, Path, int], LabelledImages]
    class_names: Callable[[bytes, Path], tuple[str, ...]]


def read_folder(version: Version, folder: Path) -> dict[str, bytes]:
    """Return the contents of the version's files that are in a folder.

    Args:
        version: which files.
        folder: where.

    Returns:
        Contents by file name.

    Raises:
        DataError: a file that is there but cannot be read.

    Example:
        >>> sorted(read_folder(BINARY, Path("cifar-10-batches-bin")))  # doctest: +SKIP
        ['batches.meta.txt', 'data_batch_1.bin', ...]
    """
    names = (*version.needed, version.meta)
    return {name: read_file(folder / name, "a CIFAR-10 file") for name in names if (folder / name).is_file()}


def read_archive(version: Version, archive: Path) -> dict[str, bytes]:
    """Return the contents of the version's files that are in an archive, read in one pass to its very end.

    Args:
        version: which files.
        archive: the .tar.gz.

    Returns:
        Contents by file name.

    Raises:
        DataError: an archive that is damaged anywhere, cut short, or holds a file twice.

    Example:
        >>> sorted(read_archive(BINARY, Path("cifar-10-binary.tar.gz")))  # doctest: +SKIP
        ['batches.meta.txt', 'data_batch_1.bin', ...]
    """
    names = (*version.needed, version.meta)
    files: dict[str, bytes] = {}
    with (
        reading(archive, f"a .tar.gz archive of {version.folder}"),
        gzip.open(archive) as stream,
        tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as tar,
    ):
        for member in tar:
            path = PurePosixPath(member.name)
            if path.parent.name != version.folder or path.name not in names:
                continue
            content = tar.extractfile(member) if member.isreg() else None
            if content is None or path.name in files:
                raise DataError(f"{archive}: expected one regular file {path.name}; got another kind or a second")
            files[path.name] = content.read()  # raises where the archive ends first
        while stream.read(1 << 20):  # to the end, where gzip's checksum is
            pass
    return files


def _decode_python(content: bytes, source: Path, n_classes: int) -> LabelledImages:
    batch = read_pickle(content, source)
    absent = [key for key in ("data", "labels") if key not in batch]
    if absent:
        raise DataError(f"{source}: expected the keys data and labels; {', '.join(absent)} is not there")
    data, labels = batch["data"], batch["labels"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (_PIXELS,):
        came = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        raise DataError(f"{source}: expected data uint8 (N, {_PIXELS}); got {came}")
    if not isinstance(labels, np.ndarray) and not (
        isinstance(labels, list) and all(type(label) is int for label in labels)
    ):
        raise DataError(f"{source}: expected labels as a list of integers; got something else")
    checked = check_labels(labels, len(data), n_classes, source)
    return LabelledImages(np.ascontiguousarray(data).reshape(-1, *SHAPE), checked)


def _names_python(content: bytes, source: Path) -> tuple[str, ...]:
    names = read_pickle(content, source).get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f"{source}: expected label_names, a list of names; it is not there or not that")
    return tuple(name.decode("latin1") if isinstance(name, bytes) else name for name in names)


def _decode_binary(content: bytes, source: Path, n_classes: int) -> LabelledImages:
    rows, left = divmod(len(content), 1 + _PIXELS)
    if left or not rows:
        raise DataError(f"{source}: expected a multiple of {1 + _PIXELS} bytes, at least one; got {len(content)}")
    table = np.frombuffer(content, dtype=np.uint8).reshape(rows, 1 + _PIXELS)
    checked = check_labels(table[:, 0], rows, n_classes, source)
    return LabelledImages(table[:, 1:].copy().reshape(-1, *SHAPE), checked)


def _names_binary(content: bytes, source: Path) -> tuple[str, ...]:
    with reading(source, "class names, one a line"):
        return tuple(content.decode("ascii").split())


_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")

PYTHON = Version(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    needed=_BATCHES,
    meta="batches.meta",
    decode=_decode_python,
    class_names=_names_python,
)
BINARY = Version(
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    needed=tuple(f"{name}.bin" for name in _BATCHES),
    meta="batches.meta.txt",
    decode=_decode_binary,
    class_names=_names_binary,
)
VERSIONS = (PYTHON, BINARY)
