"""Reading a user's files: whatever is missing or damaged becomes a DataError that names the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from augserve.errors import DataError


@contextmanager
def reading(source: object, expected: str) -> Iterator[None]:
    """Turn anything that a decoder raises into a DataError.

    Args:
        source: the file, as the message names it.
        expected: what the file should have been, in words.

    Raises:
        DataError: for every other exception of the block; a DataError passes unchanged.

    Example:
        >>> with reading("x.gz", "a gzip file"):
        ...     content = gzip.decompress(damaged)  # doctest: +SKIP
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the decoders of damaged files raise nearly every type there is
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise DataError(
            f"{source}: expected {expected}; reading it failed ({type(error).__name__}: {reason}); "
            "get the file again"
        ) from error


def read_file(path: Path, expected: str) -> bytes:
    """Return the bytes of a file, or raise a DataError that says what it should have been."""
    with reading(path, expected):
        return path.read_bytes()


def need_folder(name: str, data_dir: str | PathLike[str] | None, origin: str) -> Path:
    """Return the user's folder.

    Args:
        name: the data set's name.
        data_dir: what the user gave.
        origin: where to get the set, in words.

    Raises:
        DataError: no folder was given, or there is none of that name.
    """
    if data_dir is None:
        raise DataError(
            f"the data set {name!r} is read from your own folder: pass --data-dir FOLDER (data_dir= in "
            f"Python); the files come from {origin}"
        )
    folder = Path(data_dir)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise DataError(
            f"{folder}: expected the folder that holds the files of {name!r}, found {what}; "
            f"the files come from {origin}"
        )
    return folder


def missing(name: str, looked_for: Iterable[str], folders: Iterable[Path], origin: str) -> DataError:
    """Return the error for a set, or for a part of it, that is not there."""
    return DataError(
        f"the data set {name!r} is not there, or not all of it: looked for {'; or '.join(looked_for)}; "
        f"in {', '.join(str(folder) for folder in folders)}; get it from {origin} "
        "(augserve downloads nothing)"
    )


def check_labels(labels: npt.ArrayLike, n_images: int, n_classes: int, source: object) -> npt.NDArray[np.int64]:
    """Return the labels of a file as int64 (N,).

    Args:
        labels: integers (N,) of any width.
        n_images: N, at least 1.
        n_classes: the number of classes; labels are 0..n_classes - 1.
        source: the file, as the message names it.

    Raises:
        DataError: no images, another count than images, not integers, or a label out of range.
    """
    array = np.asarray(labels)
    if n_images < 1:
        raise DataError(f"{source}: expected at least 1 image; got none")
    if array.shape != (n_images,) or array.dtype.kind not in "iu":
        raise DataError(
            f"{source}: expected {n_images} integer labels, one an image; got {array.dtype} {array.shape}"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= n_classes:
        raise DataError(f"{source}: expected labels 0..{n_classes - 1}; got {low}..{high}")
    return array.astype(np.int64)
