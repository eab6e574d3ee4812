"""The table of data sets by name; each loader's module is imported when its set is asked for."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike

from augserve.data.image_set import ImageSet
from augserve.errors import unknown_choice

DataDir = str | PathLike[str] | None


def load_dataset(name: str, data_dir: DataDir = None) -> ImageSet:
    """Load an image set by its name.

    Args:
        name: one of `list_datasets()`.
        data_dir: the folder with the set's official files; digits needs none and ignores it.

    Returns:
        The set, in three parts (train, validation, test) that never depend on a training seed.

    Raises:
        ConfigurationError: an unknown name; the message lists the valid ones.
        DataError: files that are missing (what was looked for, where, and where to get it) or damaged.

    Example:
        >>> digits = load_dataset("digits")
        >>> digits.shape, len(digits.classes)
        ((3, 32, 32), 10)
    """
    if name not in _LOADERS:
        raise unknown_choice("data set", name, _LOADERS)
    return _LOADERS[name](data_dir)


def list_datasets() -> tuple[str, ...]:
    """Return the names that `load_dataset` takes.

    Returns:
        The names, the one that needs no files first.

    Example:
        >>> list_datasets()
        ('digits', 'cifar10', 'fashion-mnist')
    """
    return tuple(_LOADERS)


def _digits(_: DataDir) -> ImageSet:
    from augserve.data.digits import load_digits

    return load_digits()


def _cifar10(data_dir: DataDir) -> ImageSet:
    from augserve.data.cifar import load_cifar10

    return load_cifar10(data_dir)


def _fashion_mnist(data_dir: DataDir) -> ImageSet:
    from augserve.data.fashion_mnist import load_fashion_mnist

    return load_fashion_mnist(data_dir)


_LOADERS: dict[str, Callable[[DataDir], ImageSet]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "fashion-mnist": _fashion_mnist,
}
