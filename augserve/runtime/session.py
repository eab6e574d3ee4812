"""Opening an augserve .onnx file as an ONNX Runtime session.

`open_session` checks that the graph is what the manifest says, so that whoever holds a session may trust both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import onnxruntime as ort

from augserve.errors import ModelFileError, unknown_choice
from augserve.manifest import METADATA_KEY, Manifest, parse_manifest
from augserve.runtime.contents import check_contents
from augserve.runtime.kernels import CUDA, Kernels, Native, register
from augserve.runtime.promises import check_graph
from augserve.runtime.seal import check_seal
from augserve.runtime.tracked_form import tracked_form

DEFAULT_PROVIDERS = ("CPUExecutionProvider",)
MAX_BYTES = 2**31 - 1  # of a message of Protocol Buffers

_kernels: WeakKeyDictionary[ort.InferenceSession, Kernels] = WeakKeyDictionary()


def open_session(
    path: str | Path,
    *,
    providers: Sequence[str] | None = None,
    native: Native = "auto",
    library: str | Path | None = None,
    threads: int = 0,
) -> ort.InferenceSession:
    """Open an exported file.

    Args:
        path: the .onnx file.
        providers: ONNX Runtime execution providers, in order of preference; None means the CPU.
        native: use of the native operators: "auto" (when there is a library that works, unless AUGSERVE_NATIVE says
            otherwise), "on" (there must be one), "off"; see `kernels_of`.
        library: the native library's file, instead of AUGSERVE_NATIVE_LIBRARY's or the one that was installed.
        threads: threads inside one operator; 0 leaves it to ONNX Runtime (one a core). They sleep between runs.

    Returns:
        The session; `read_manifest` gives what the file says about itself.

    Raises:
        ModelFileError: no such file, not an ONNX file, not ours, damaged, or a manifest that its graph belies.
        ConfigurationError: a provider that this ONNX Runtime does not have, or native="on" without a library.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises for names that the system does not take
        what = "a folder" if os.path.isdir(path) else "nothing"
        raise ModelFileError(f"{path}: expected an .onnx file, found {what}; `augserve export` writes one")
    chosen = list(providers or DEFAULT_PROVIDERS)
    for provider in chosen:
        if provider not in ort.get_available_providers():
            raise unknown_choice("execution provider", provider, ort.get_available_providers())
    if path.stat().st_size > MAX_BYTES:
        raise ModelFileError(
            f"{path}: expected at most {MAX_BYTES} bytes, as ONNX files have; got {path.stat().st_size}"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from None
    check_seal(content, path)
    check_contents(content, path)
    options = _options(threads)
    kernels = register(options, chosen, native, library)
    try:
        session = _started(content, options, chosen, path)
    except ModelFileError:
        if kernels.library is None or CUDA not in chosen or native == "on":
            raise
        # Where the CUDA provider did not start, its operators hide the functions that the CPU could run.
        session = _started(content, _options(threads), chosen, path)
        kernels = Kernels(None, f"the session does not start with {kernels.library}; is there a CUDA device?")
    try:
        check_graph(session, read_manifest(session, path), path)
    except UnicodeDecodeError:
        raise ModelFileError(f"{path}: a name in its graph is damaged (not UTF-8); export the file again") from None
    _kernels[session] = kernels
    return session


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, not printed
    options.intra_op_num_threads = threads
    # Else its threads keep their cores busy for 10 to 50 ms after a run, which other sessions and the process need.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # not what the bytes may look like
    # Functions are put into the graph after its first optimizations: loading them takes a fifth less.
    options.add_session_config_entry("session.disable_aot_function_inlining", "1")
    return options


def _started(content: bytes, options: ort.SessionOptions, providers: list[str], path: Path) -> ort.InferenceSession:
    try:
        fall_back = providers != list(
            DEFAULT_PROVIDERS
        )  # ONNX Runtime's own, which prints; from the CPU to the CPU
        return ort.InferenceSession(content, options, providers=providers, enable_fallback=int(fall_back))
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelFileError(f"{path}: not an ONNX file that can be run ({reason})") from None


def open_tracked_session(
    path: str | Path, *, providers: Sequence[str] | None = None, threads: int = 0
) -> ort.InferenceSession | None:
    """Open the tracked form of a file that `open_session` takes: input -> logits, norms folded away.

    Args:
        path: the .onnx file.
        providers: as for `open_session`.
        threads: as for `open_session`.

    Returns:
        The session, without a manifest; None where the file has no such form (see `augserve.runtime.tracked_form`).
    """
    chosen = list(providers or DEFAULT_PROVIDERS)
    content = tracked_form(Path(path).read_bytes(), cpu=chosen[0] == DEFAULT_PROVIDERS[0])
    return None if content is None else _started(content, _options(threads), chosen, Path(path))


def kernels_of(session: ort.InferenceSession) -> Kernels:
    """Return what runs the norms in a session of `open_session`: the native library, or the file's functions.

    Example:
        >>> kernels_of(open_session("model.onnx", native="off")).library  # doctest: +SKIP
    """
    return _kernels.get(session, Kernels(None, "not opened by augserve.runtime.open_session"))


def read_manifest(session: ort.InferenceSession, path: str | Path = "the model") -> Manifest:
    """Return what the session's file says about itself; `path` is only named in errors."""
    try:
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    except UnicodeDecodeError:
        raise ModelFileError(f"{path}: its metadata are damaged (not UTF-8); export the file again") from None
    if text is None:
        raise ModelFileError(f"{path}: an ONNX file without an augserve manifest; write it with `augserve export`")
    return parse_manifest(text, path)
