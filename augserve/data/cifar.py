"""CIFAR-10 from a user's folder, in whichever of its forms is there.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of Toronto, 2009
(50,000 train and 10,000 test images; the mean and std are those of the whole train part).
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from augserve.data.cifar_files import VERSIONS, Version, read_archive, read_folder
from augserve.data.image_set import ImageSet, LabelledImages, photographs
from augserve.data.reading import missing, need_folder
from augserve.data.strips import read_strips
from augserve.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.49139968, 0.48215841, 0.44653091)
STD = (0.24703223, 0.24348513, 0.26158784)
SHAPE = (3, 32, 32)

_STRIPS = ("cifar10_train.npz", "cifar10_test.npz")
_ORIGIN = "the CIFAR-10 page of the University of Toronto (A. Krizhevsky)"


def load_cifar10(data_dir: str | PathLike[str] | None) -> ImageSet:
    """Load CIFAR-10 from the user's folder.

    Looked for, in this order: the folder cifar-10-batches-py, or data_dir being that folder; the same of
    cifar-10-batches-bin; the two strip files; the archives cifar-10-python.tar.gz and cifar-10-binary.tar.gz,
    which are read without being extracted.

    Args:
        data_dir: the folder.

    Returns:
        The set, (3, 32, 32), with 10% of every train class held out for validation.

    Raises:
        DataError: no folder given, files missing (all of them, or some of a form that is there), damaged, or
            of another set (class names that are not CIFAR-10's).

    Example:
        >>> load_cifar10("data").classes[3]  # doctest: +SKIP
        'cat'
    """
    root = need_folder("cifar10", data_dir, _ORIGIN)
    return photographs("cifar10", *_read(root), CLASSES, MEAN, STD)


def _read(root: Path) -> tuple[LabelledImages, LabelledImages]:
    """Return the official train and test parts from the first form that is there."""
    for version in VERSIONS:
        for folder in (root / version.folder, root):
            if any((folder / name).is_file() for name in version.needed):
                return _parts(version, read_folder(version, folder), folder)
    strips = [root / name for name in _STRIPS]
    if any(path.is_file() for path in strips):
        absent = [path.name for path in strips if not path.is_file()]
        if absent:
            raise missing("cifar10", absent, [root], _ORIGIN)
        return read_strips(strips[0], SHAPE, len(CLASSES)), read_strips(strips[1], SHAPE, len(CLASSES))
    for version in VERSIONS:
        archive = root / version.archive
        if archive.is_file():
            return _parts(version, read_archive(version, archive), archive)
    forms = [f"{v.folder}/ ({', '.join(v.needed)})" for v in VERSIONS]
    forms += [", ".join(_STRIPS), *(v.archive for v in VERSIONS)]
    raise missing("cifar10", forms, [root], _ORIGIN)


def _parts(version: Version, files: dict[str, bytes], where: Path) -> tuple[LabelledImages, LabelledImages]:
    """Decode the files of one version, which are all there or an error."""
    absent = [name for name in version.needed if name not in files]
    if absent:
        raise missing("cifar10", absent, [where], _ORIGIN)
    if version.meta in files:
        came = version.class_names(files[version.meta], where / version.meta)
        if came != CLASSES:
            raise DataError(
                f"{where / version.meta}: expected CIFAR-10's classes {', '.join(CLASSES)}; got {', '.join(came)}"
            )
    batches = [version.decode(files.pop(name), where / name, len(CLASSES)) for name in version.needed]
    train = LabelledImages(*(np.concatenate(arrays) for arrays in zip(*batches[:-1], strict=True)))
    return train, batches[-1]
