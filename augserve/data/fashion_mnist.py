"""Fashion-MNIST: 28x28 grey photographs of ten kinds of clothing, from the official idx files or strips.

Source: H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", 2017 (60,000 train and 10,000 test images; mean and std are those of its train part).
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from augserve.data.idx import read_idx
from augserve.data.image_set import ImageSet, LabelledImages, photographs
from augserve.data.reading import check_labels, missing, need_folder
from augserve.data.strips import read_strips
from augserve.errors import DataError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle-boot",
)
MEAN = (0.2860,)
STD = (0.3530,)
SHAPE = (1, 28, 28)

# Subfolders before data_dir itself, since the files of MNIST proper have the same names.
_SUBFOLDERS = ("FashionMNIST/raw", "fashion-mnist", "")
_PARTS = ("train", "t10k")
_STRIPS = ("fashion_mnist_train.npz", "fashion_mnist_test.npz")
_ORIGIN = "the Fashion-MNIST repository of Zalando Research on GitHub (H. Xiao et al.)"


def load_fashion_mnist(data_dir: str | PathLike[str] | None) -> ImageSet:
    """Load Fashion-MNIST from the user's folder.

    Looked for, in this order: the four official idx files, each plain or .gz, in data_dir/FashionMNIST/raw,
    data_dir/fashion-mnist and data_dir; the two strip files in data_dir.

    Args:
        data_dir: the folder.

    Returns:
        The set, (1, 28, 28), with 10% of every train class held out for validation.

    Raises:
        DataError: no folder given, files missing (all of them, or some of a form that is there) or damaged.

    Example:
        >>> load_fashion_mnist("data").classes[1]  # doctest: +SKIP
        'Trouser'
    """
    root = need_folder("fashion-mnist", data_dir, _ORIGIN)
    return photographs("fashion-mnist", *_read(root), CLASSES, MEAN, STD)


def _read(root: Path) -> tuple[LabelledImages, LabelledImages]:
    """Return the official train and test parts from the first form that is there."""
    folders = [root / sub for sub in _SUBFOLDERS]
    names = [name for part in _PARTS for name in _idx_names(part)]
    for folder in folders:
        found = {name: path for name in names if (path := _plain_or_gz(folder / name)) is not None}
        if found:
            absent = [f"{name}[.gz]" for name in names if name not in found]
            if absent:
                raise missing("fashion-mnist", absent, [folder], _ORIGIN)
            return _read_idx_part(found, "train"), _read_idx_part(found, "t10k")
    strips = [root / name for name in _STRIPS]
    if any(path.is_file() for path in strips):
        absent = [path.name for path in strips if not path.is_file()]
        if absent:
            raise missing("fashion-mnist", absent, [root], _ORIGIN)
        return read_strips(strips[0], SHAPE, len(CLASSES)), read_strips(strips[1], SHAPE, len(CLASSES))
    forms = [", ".join(f"{name}[.gz]" for name in names), ", ".join(_STRIPS)]
    raise missing("fashion-mnist", forms, folders, _ORIGIN)


def _read_idx_part(found: dict[str, Path], part: str) -> LabelledImages:
    image_path, label_path = (found[name] for name in _idx_names(part))
    images = read_idx(image_path, SHAPE[1:])  # (N, 28, 28)
    labels = read_idx(label_path, ())  # (N,)
    if len(images) != len(labels):
        raise DataError(f"{label_path}: expected {len(images)} labels, as many as {image_path}; got {len(labels)}")
    return LabelledImages(images[:, None], check_labels(labels, len(images), len(CLASSES), label_path))


def _idx_names(part: str) -> tuple[str, str]:
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _plain_or_gz(path: Path) -> Path | None:
    return next((one for one in (path, path.with_name(path.name + ".gz")) if one.is_file()), None)
