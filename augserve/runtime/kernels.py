"""Which kernels an ONNX Runtime session takes for the operators of the domain `augserve`.

A file holds every operator as a function of standard ones, so that it runs without this library; where the library
is registered, its kernels are taken instead. Where to look, first found first taken: the argument, the variable of
the environment, the file that was installed, none.

    CPU sessions     AUGSERVE_NATIVE_LIBRARY         libaugserve_native
    CUDA sessions    AUGSERVE_NATIVE_CUDA_LIBRARY    libaugserve_native_cuda

A library for the CPU is not registered in a CUDA session: every norm would fetch its values from the device.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from augserve.errors import ConfigurationError, unknown_choice
from augserve.native import CHOICE_VARIABLE, CHOICES, describe, find_library

Native = Literal["auto", "on", "off"]

CUDA = "CUDAExecutionProvider"
CUDA_LIBRARY_VARIABLE = "AUGSERVE_NATIVE_CUDA_LIBRARY"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """What runs the operators of the domain `augserve` in a session.

    Args:
        library: the native library that is registered, or None: the file's functions, in standard operators.
        reason: why there is none; empty where there is one.
    """

    library: Path | None
    reason: str = ""


def register(
    options: ort.SessionOptions, providers: Sequence[str], native: Native, library: str | Path | None = None
) -> Kernels:
    """Register the native operators with the options of a session, if they are wanted and there.

    Args:
        options: of a session that is not open yet; nothing is registered with them.
        providers: of the session.
        native: "auto" (what AUGSERVE_NATIVE says; where that says nothing: when there is a library that works),
            "on" (there must be one), "off".
        library: its file, instead of what the environment names or what was installed.

    Returns:
        What the session will use. A library that does not work is reported in the log, once, unless native is "on".

    Raises:
        ConfigurationError: an unknown value of native; "on" (or AUGSERVE_NATIVE=on) without a library that works.
    """
    if native not in CHOICES:
        raise unknown_choice("value of native", native, CHOICES)
    if native == "off":
        return Kernels(None, "native operators are switched off")
    path, reason = (_cuda_library if CUDA in providers else _cpu_library)(library)
    if path is not None:
        try:
            options.register_custom_ops_library(str(path))
            return Kernels(path)
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this
            reason = f"{path} cannot be registered ({' '.join(str(error).split())[:300]})"
            _warn(reason)
    if native == "on" or os.environ.get(CHOICE_VARIABLE) == "on":
        raise ConfigurationError(f"native operators are wanted, but {reason}")
    return Kernels(None, reason)


def _cpu_library(library: str | Path | None) -> tuple[Path | None, str]:
    status = describe(library)
    if status.state == "loaded":
        return status.path, ""
    if status.state == "unusable":
        _warn(status.reason)
    return None, status.reason


def _cuda_library(library: str | Path | None) -> tuple[Path | None, str]:
    named = library or os.environ.get(CUDA_LIBRARY_VARIABLE)
    if os.environ.get(CHOICE_VARIABLE) == "off":
        return None, f"{CHOICE_VARIABLE}=off; unset it, or set it to auto"
    if named:
        given = Path(named).absolute()
        return (given, "") if given.is_file() else (None, f"expected the native library at {given}, found nothing")
    beside = find_library()
    if beside is not None:
        path = beside.with_name(beside.name.replace("_native", "_native_cuda"))
        if path.is_file():
            return path, ""
    return None, (
        "there is no native library for CUDA sessions; `make native-cuda` builds one, which "
        f"{CUDA_LIBRARY_VARIABLE} names"
    )


_warned: set[str] = set()


def _warn(reason: str) -> None:
    if reason not in _warned:
        _warned.add(reason)
        logger.warning("going on without native operators: %s", reason)
