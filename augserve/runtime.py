"""Opening an augserve .onnx file as an ONNX Runtime session, and running rows through it. No torch.

`open_session` checks that the graph is what the manifest says, so that whoever holds a session may trust both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from augserve.contents import check_contents
from augserve.errors import InputError, ModelFileError, unknown_choice
from augserve.manifest import METADATA_KEY, Manifest, TensorSpec, parse_manifest
from augserve.runtime_native import CUDA, Kernels, Native, register
from augserve.seal import check_seal
from augserve.tracked_form import tracked_form

ADAPTIVE_INPUTS = ("input", "group", "tracked_weight")
_ORT_TYPES = {"float32": "float", "float64": "double"}  # the others have NumPy's names
DEFAULT_PROVIDERS = ("CPUExecutionProvider",)
MAX_BYTES = 2**31 - 1  # of a message of Protocol Buffers
MAX_ROW_VALUES = 2**28  # 1 GiB

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
        _check_graph(session, read_manifest(session, path), path)
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
        The session, without a manifest; None where the file has no such form (see `augserve.tracked_form`).
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


def run_rows(
    session: ort.InferenceSession,
    rows: npt.NDArray[np.float32],
    group: npt.NDArray[np.int64] | None = None,
    tracked_weight: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Run rows through the session.

    Args:
        session: an open augserve file.
        rows: float32 (N, C, H, W), preprocessed.
        group: int64 (N,), ids 0..G-1; left out: one group. Adaptive files only.
        tracked_weight: float32 (N,), lambda of each row's group; left out: 1 (tracked). Adaptive files only.

    Returns:
        The logits, float32 (N, K).
    """
    n = len(rows)
    names = [node.name for node in session.get_inputs()]
    own = [name for name in names if name not in ADAPTIVE_INPUTS[1:]]
    if len(own) != 1:
        raise InputError(f"expected a file with one input; this one takes {', '.join(own)}: call the session's run")
    feed: dict[str, npt.NDArray[np.generic]] = {own[0]: rows}
    if "group" in names:
        feed["group"] = np.zeros(n, np.int64) if group is None else group
        feed["tracked_weight"] = np.ones(n, np.float32) if tracked_weight is None else tracked_weight
    logits: npt.NDArray[np.float32] = session.run([session.get_outputs()[0].name], feed)[0]
    return logits


def check_rows(rows: npt.ArrayLike, manifest: Manifest) -> npt.NDArray[np.float32]:
    """Return rows as contiguous float32 (N, C, H, W) of the manifest's shape.

    Raises:
        InputError: another shape, values that are not numbers, or NaN or inf.
    """
    try:
        array = np.asarray(rows)
    except ValueError:
        expected = _expected(manifest)
        raise InputError(f"expected rows of equal shape {expected}; got rows of different shapes") from None
    if array.dtype.kind not in "fiu":
        raise InputError(f"expected rows of numbers, shape {_expected(manifest)}; got values of type {array.dtype}")
    if list(array.shape[1:]) not in manifest.shapes:
        came = "(" + ", ".join(str(size) for size in array.shape) + ")"
        raise InputError(f"expected rows of shape {_expected(manifest)}; got {came}")
    if len(array) == 0:
        raise InputError("expected at least 1 row; got none")
    if array.dtype != np.float32:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    array = np.ascontiguousarray(array)
    finite = np.isfinite(array)
    if not finite.all():
        first = int(np.argmin(finite.all(axis=tuple(range(1, array.ndim)))))
        raise InputError(f"expected finite float32 numbers; row {first} holds NaN or inf")
    return array


def _expected(manifest: Manifest) -> str:
    return " or ".join("(N, " + ", ".join(map(str, shape)) + ")" for shape in manifest.shapes)


def _check_graph(session: ort.InferenceSession, manifest: Manifest, path: Path) -> None:
    """Refuse a file whose graph is not what its manifest says."""
    if manifest.inputs:
        _check_converted(session, manifest, path)
        return
    if math.prod(manifest.shape) > MAX_ROW_VALUES:
        raise ModelFileError(
            f"{path}: expected rows of at most {MAX_ROW_VALUES} values; its manifest promises {manifest.shape}"
        )
    inputs = {node.name: node for node in session.get_inputs()}
    expected = ADAPTIVE_INPUTS if manifest.mode == "adaptive" else ADAPTIVE_INPUTS[:1]
    if tuple(inputs) != expected:
        raise ModelFileError(
            f"{path}: its manifest promises mode {manifest.mode} with inputs {', '.join(expected)}; "
            f"the graph has {', '.join(inputs)}; export the file again"
        )
    several: list[int | str] = [*manifest.shape[:1], "H", "W"]
    _check_tensor(path, inputs["input"], "tensor(float)", several if manifest.sizes else manifest.shape)
    if manifest.sizes and manifest.shape[1:] != list(manifest.sizes[0]):
        raise ModelFileError(f"{path}: its manifest gives shape {manifest.shape} and other sizes {manifest.sizes}")
    if manifest.mode == "adaptive":
        _check_tensor(path, inputs["group"], "tensor(int64)", [])
        _check_tensor(path, inputs["tracked_weight"], "tensor(float)", [])
    outputs = session.get_outputs()
    if [node.name for node in outputs] != ["logits"]:
        names = ", ".join(node.name for node in outputs)
        raise ModelFileError(f"{path}: expected one output, logits; the graph has {names}; export the file again")
    _check_tensor(path, outputs[0], "tensor(float)", [len(manifest.classes)])
    if manifest.preprocessing is not None:
        p = manifest.preprocessing
        if [len(p.mean), p.height, p.width] != manifest.shape:
            raise ModelFileError(f"{path}: its preprocessing does not make rows of shape {manifest.shape}")


def _check_converted(session: ort.InferenceSession, manifest: Manifest, path: Path) -> None:
    """Refuse a converted file whose inputs and outputs, in this order, are not what its manifest says."""
    own = (
        TensorSpec(name=ADAPTIVE_INPUTS[1], dtype="int64", shape=[]),
        TensorSpec(name=ADAPTIVE_INPUTS[2], dtype="float32", shape=[]),
    )
    for kind, nodes, specs in (
        ("inputs", session.get_inputs(), [*manifest.inputs, *own]),
        ("outputs", session.get_outputs(), manifest.outputs),
    ):
        came = [
            (node.name, node.type, [size if isinstance(size, int) else None for size in node.shape])
            for node in nodes
        ]
        promised = [
            (
                spec.name,
                f"tensor({_ORT_TYPES.get(spec.dtype, spec.dtype)})",
                [None, *spec.shape] if spec.rows else spec.shape,
            )
            for spec in specs
        ]
        if came != promised:
            raise ModelFileError(
                f"{path}: its manifest promises {kind} {promised}; the graph has {came}; convert the file again"
            )


def _check_tensor(path: Path, node: ort.NodeArg, dtype: str, shape: Sequence[int | str]) -> None:
    """Refuse an input or output that is not of this type and shape (N, *shape) with any number of rows N."""
    if (
        node.type != dtype
        or not node.shape
        or isinstance(node.shape[0], int)
        or list(node.shape[1:]) != list(shape)
    ):
        expected = ", ".join(["N", *map(str, shape)])
        raise ModelFileError(
            f"{path}: its manifest promises {node.name} as {dtype} ({expected}), any N; the graph has {node.type} "
            f"{node.shape}; export the file again"
        )


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return exp(z_k) / sum_j exp(z_j) by row, float64 (N, K)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    result: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def rows_with_own_statistics(manifest: Manifest) -> int:
    """Return the fewest rows of a group with statistics of its own: 1, or 2 where some layer has L = 1."""
    return 2 if manifest.min_positions == 1 else 1
