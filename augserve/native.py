"""The native library: where it is, whether it may be used, and how to get it. No torch, no ONNX Runtime.

pip builds it from `native/` where there is a C++ compiler; everything works without it, slower. Two variables of
the environment are read, each time anew here, once by `augserve.norms` when it is imported:

    AUGSERVE_NATIVE           auto (use it where it is), on (it must be there), off
    AUGSERVE_NATIVE_LIBRARY   path of another library to take
"""

from __future__ import annotations

import ctypes
import functools
import json
import logging
import os
import shlex
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import augserve
from augserve.errors import ConfigurationError, unknown_choice

if TYPE_CHECKING:
    from importlib.metadata import Distribution

ABI = 4  # AUGSERVE_ABI of native/include/augserve.h

CHOICES = ("auto", "on", "off")
CHOICE_VARIABLE = "AUGSERVE_NATIVE"
LIBRARY_VARIABLE = "AUGSERVE_NATIVE_LIBRARY"
LIBRARY_NAME = {"win32": "libaugserve_native.dll", "darwin": "libaugserve_native.dylib"}.get(
    sys.platform, "libaugserve_native.so"
)

NativeState = Literal["loaded", "missing", "unusable", "off"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NativeStatus:
    """What became of the native library in this process.

    Args:
        state: loaded; missing (there is none); unusable (there is one that cannot be used); off (not wanted).
        path: its file, or None where there is none.
        abi: its interface; None where it was not loaded.
        instruction_set: what its kernels run with here, such as "avx2"; None where it was not loaded.
        reason: why it is not used, and what to do; empty where it is.
    """

    state: NativeState
    path: Path | None = None
    abi: int | None = None
    instruction_set: str | None = None
    reason: str = ""


def load_library(library: str | Path | None = None) -> ctypes.CDLL | None:
    """Load the native library, once in a process.

    Args:
        library: its file; None finds it as `find_library` does.

    Returns:
        The library, or None where it is switched off, missing or (after a warning in the log) unusable.

    Raises:
        ConfigurationError: AUGSERVE_NATIVE is none of auto, on, off; or it is on and the library cannot be loaded;
            or a file was named that is not there.
    """
    return _load(library, os.environ.get(LIBRARY_VARIABLE), _choice())


def find_library(library: str | Path | None = None) -> Path | None:
    """Find the native library's file: the argument, else AUGSERVE_NATIVE_LIBRARY, else what pip installed.

    Args:
        library: a file to take instead.

    Returns:
        Its absolute path, or None where there is none. AUGSERVE_NATIVE is not looked at.

    Raises:
        ConfigurationError: a file was named that is not there.
    """
    named = _named(library)
    if named is None:
        return next((path for path in _installed() if path.is_file()), None)
    if not named.is_file():
        what = "a folder" if named.is_dir() else "nothing"
        whence = "" if library is not None else f"{LIBRARY_VARIABLE}: "
        do = "name the file" if library is not None else f"name the file, or unset {LIBRARY_VARIABLE}"
        raise ConfigurationError(f"{whence}expected the native library at {named}, found {what}; {do}")
    return named


def describe(library: str | Path | None = None) -> NativeStatus:
    """Tell what became of the native library; it is loaded for that, unless it is switched off.

    Args:
        library: its file; None finds it as `find_library` does.

    Returns:
        The status; a library that cannot be used is a state of it, not an error.

    Raises:
        ConfigurationError: AUGSERVE_NATIVE is none of auto, on, off.

    Example:
        >>> describe().state in ("loaded", "missing", "unusable", "off")
        True
    """
    choice = _choice()
    try:
        path = find_library(library)
    except ConfigurationError as error:
        return NativeStatus("off" if choice == "off" else "unusable", _named(library), reason=str(error))
    if choice == "off":
        return NativeStatus("off", path, reason=f"{CHOICE_VARIABLE}=off; unset it, or set it to auto")
    if path is None:
        return NativeStatus("missing", reason=f"none was built when augserve was installed; {how_to_get_it()}")
    opened = _open(path)
    if isinstance(opened, str):
        return NativeStatus("unusable", path, reason=f"{opened}; {_mend(library)}")
    return NativeStatus("loaded", path, opened.augserve_abi(), opened.augserve_instruction_set().decode())


def how_to_get_it() -> str:
    """Return, in one line, what brings the native library into this installation."""
    return f"install a C++ compiler (Debian: apt-get install g++), then: {_reinstall()}"


def _choice() -> str:
    choice = os.environ.get(CHOICE_VARIABLE) or "auto"
    if choice not in CHOICES:
        raise unknown_choice(f"value of {CHOICE_VARIABLE}", choice, CHOICES)
    return choice


def _named(library: str | Path | None) -> Path | None:
    """Return the file that the argument or the environment names, absolute: a bare name would search the system."""
    name = library if library is not None else os.environ.get(LIBRARY_VARIABLE)
    return Path(name).absolute() if name else None


def _installed() -> list[Path]:
    """Return where pip puts the library: beside the package, or for an editable install where packages are."""
    places = [Path(augserve.__file__).parent / "lib" / LIBRARY_NAME]
    if distribution := _distribution():
        places.append(Path(str(distribution.locate_file(f"augserve/lib/{LIBRARY_NAME}"))).absolute())
    return places


@functools.cache
def _load(library: str | Path | None, variable: str | None, choice: str) -> ctypes.CDLL | None:
    """Load the library for these settings; `variable` is LIBRARY_VARIABLE's value, which find_library reads."""
    if choice == "off":
        return None
    path = find_library(library)
    if path is None:
        if choice == "on":
            raise ConfigurationError(f"{CHOICE_VARIABLE}=on, but there is no native library; {how_to_get_it()}")
        return None
    opened = _open(path)
    if not isinstance(opened, str):
        return opened
    if choice == "on":
        raise ConfigurationError(f"{CHOICE_VARIABLE}=on, but {opened}; {_mend(library)}")
    logger.warning("going on without the native library: %s; %s", opened, _mend(library))
    return None


@functools.cache
def _open(path: Path) -> ctypes.CDLL | str:
    """Open a library and compare its interface with ours; what is wrong comes back as text."""
    if not _is_whole(path):
        return f"{path} is cut short"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path} cannot be loaded ({error})"
    try:
        library.augserve_abi.restype = ctypes.c_int64
        library.augserve_instruction_set.restype = ctypes.c_char_p
    except AttributeError:
        return f"{path} is not augserve's native library"
    abi = library.augserve_abi()
    if abi != ABI:
        return f"{path} has interface {abi}, this augserve {augserve.__version__} needs {ABI}"
    return library


def _mend(library: str | Path | None) -> str:
    """Return what to do about a library that cannot be used."""
    if library is not None:
        return "name another file"
    if os.environ.get(LIBRARY_VARIABLE):
        return f"name another file, or unset {LIBRARY_VARIABLE}"
    return f"rebuild it ({_reinstall()}) or set {CHOICE_VARIABLE}=off"


def _is_whole(path: Path) -> bool:
    """Return whether an ELF file reaches to the end of its section table: loading half of one kills the process."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
            size = file.seek(0, os.SEEK_END)
    except OSError:
        return True  # what is wrong with it, loading will say
    if not head.startswith(b"\x7fELF\x02") or len(head) < 64:  # not a 64-bit ELF file
        return True
    order = "<" if head[5] == 1 else ">"
    (table,) = struct.unpack_from(f"{order}Q", head, 40)
    entry, entries = struct.unpack_from(f"{order}2H", head, 58)
    return bool(table + entry * entries <= size)


def _distribution() -> Distribution | None:
    """Return what pip wrote down about augserve, or None where it runs from its source alone."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return distribution("augserve")
    except PackageNotFoundError:
        return None


def _reinstall() -> str:
    """Return the command that builds and installs augserve again, from where it came."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    command = f"{shlex.quote(sys.executable)} -m pip install --force-reinstall --no-deps"
    distribution = _distribution()
    try:
        origin = json.loads((distribution and distribution.read_text("direct_url.json")) or "{}")
    except ValueError:
        origin = {}
    folder = origin.get("dir_info")
    if folder is None:  # from a wheel's file or an index: only the source brings a library
        return f"{command} . (in the folder of augserve's source)"
    path = shlex.quote(url2pathname(urlsplit(origin["url"]).path))
    return f"{command} --editable {path}" if folder.get("editable") else f"{command} {path}"
