"""What is installed here: versions of what augserve stands on (which is not imported) and the native library."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import augserve
from augserve.native import NativeStatus, describe

PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class Installation:
    """One installation of augserve.

    Args:
        augserve: its version.
        python: version of the interpreter.
        packages: version of each of PACKAGES, None where it is not installed.
        native: what became of the native library.
    """

    augserve: str
    python: str
    packages: dict[str, str | None]
    native: NativeStatus


def describe_installation() -> Installation:
    """Look at what is installed.

    Returns:
        The installation; the native library is loaded for that, unless it is switched off.

    Raises:
        ConfigurationError: AUGSERVE_NATIVE is none of auto, on, off.

    Example:
        >>> describe_installation().augserve == augserve.__version__
        True
    """
    packages = {name: _version(name) for name in PACKAGES}
    return Installation(augserve.__version__, platform.python_version(), packages, describe())


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
