"""From anyone's ONNX file to an adaptive one: its BatchNormalization nodes get statistics modes and groups.

Each node becomes augserve's, whose statistics are the tracked ones where tracked_weight is 1, and those of a row's
group else. Nothing is taken on trust: the rows are followed through every operator (`rows`), and the file is
compared with the original before it is written (`parity`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto, helper
from pydantic import ValidationError

import augserve
from augserve.errors import ExportError
from augserve.export.foreign.analyse import Analysed, analyse
from augserve.export.foreign.inputs import ports_of
from augserve.export.foreign.load import clean, opset_of, raise_opset, read_foreign
from augserve.export.foreign.original import Original
from augserve.export.foreign.parity import Norm, Subject, prove
from augserve.export.foreign.rewrite import Operator, adaptive_network, eps_of, free_names, fused, operator_for
from augserve.export.opsets import ir_version_for
from augserve.export.parity import ParityReport
from augserve.files import write_atomic
from augserve.manifest import METADATA_KEY, Manifest, NormLayer, Source, TensorSpec
from augserve.operators import DOMAIN
from augserve.runtime import kernels_of, open_session, rows_with_own_statistics
from augserve.runtime.kernels import Native
from augserve.runtime.seal import seal

LARGEST = 2**31 - 1  # bytes of a protobuf message


def convert_onnx(
    source: str | Path,
    target: str | Path,
    *,
    norm: str = "batch",
    phi: float = 1.5,
    example: Mapping[str, npt.ArrayLike] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    native: Native = "auto",
) -> ParityReport:
    """Make an ONNX file adaptive: its statistics mode and the group of every row become inputs.

    Args:
        source: a file of opset 9 or newer, whoever wrote it, with its BatchNormalization nodes still in it.
        target: the file to write; it is replaced in one step, and only when every check has passed.
        norm: "batch" (the group's mean) or "aug" (its generalized median).
        phi: exponent of the generalized median, 1 median .. 2 mean .. inf midrange; for norm "aug".
        example: real values for every input, by name, N rows each, for the parity report; random ones without it.
        shapes: the shape of one row by input name, where the file leaves axes open; guessed without it.
        native: use of the native operator library in the parity report.

    Returns:
        The parity report, which the file's manifest holds as well.

    Raises:
        ConfigurationError: an unknown norm or an impossible phi.
        InputError: an example or shapes that the network does not take.
        ModelFileError: a source that is missing, not ONNX, or that ONNX Runtime cannot run.
        ExportError: a network that cannot be converted, with the node and the reason, or a parity check that
            failed; nothing is written.

    Example:
        >>> convert_onnx("theirs.onnx", "adaptive.onnx", norm="aug", phi=1.0)  # doctest: +SKIP
    """
    source, target = Path(source), Path(target)
    operator_for(norm, phi, 1.0)
    _check_target(source, target)
    came = read_foreign(source)
    cleaned = clean(came)
    ports = ports_of(cleaned)
    free_names(cleaned)
    original = Original(cleaned.SerializeToString(), ports)
    network = raise_opset(cleaned)
    analysed = analyse(network, original, example, shapes or {})
    operators = {name: operator_for(norm, phi, eps_of(node)) for name, node in analysed.norms.items()}
    adaptive = adaptive_network(network, operators, analysed.symbol)
    file = fused(adaptive)
    manifest = _described(source, came, original, analysed, operators)
    _finish(file, manifest)
    subject = Subject(
        original,
        adaptive,
        _norms(adaptive, analysed, phi if norm == "aug" else 2.0),
        analysed.ports,
        analysed.example,
        rows_with_own_statistics(manifest),
    )
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "candidate.onnx"
        candidate.write_bytes(seal(file.SerializeToString()))
        report = prove(subject, _sessions(candidate, native))
    _set_manifest(file, manifest.model_copy(update={"parity": list(report.checks)}))
    write_atomic(target, seal(file.SerializeToString()))
    return report


def _check_target(source: Path, target: Path) -> None:
    if target.is_dir():
        raise ExportError(f"{target}: expected the name of a file to write; this is a folder")
    if not target.parent.is_dir():
        raise ExportError(f"{target.parent}: no such folder to write {target.name} into")
    if target.exists() and source.exists() and target.samefile(source):
        raise ExportError(f"{target}: expected another file to write than the one that is read")


def _describe(
    source: Path,
    came: ModelProto,
    original: Original,
    analysed: Analysed,
    operators: Mapping[str, Operator],
) -> Manifest:
    graph = analysed.network.graph
    inputs = [
        TensorSpec(name=port.name, dtype=port.dtype.name, shape=list(port.sizes), rows=port.has_rows)
        for port in original.ports.inputs
    ]
    outputs = [
        TensorSpec(
            name=value.name,
            dtype=helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            shape=[dim.dim_value or None for dim in value.type.tensor_type.shape.dim[1:]],
        )
        for value in graph.output
    ]
    plain = len(inputs) == 1 and inputs[0].dtype == "float32" and None not in inputs[0].shape
    scores = len(outputs) == 1 and outputs[0].dtype == "float32" and len(outputs[0].shape) == 1
    classes = outputs[0].shape[0] if scores else None
    norms = [
        NormLayer(
            name=node.name or name,
            kind=node.op_type,
            num_features=analysed.features[name],
            positions=analysed.positions[name],
            options={"operator": operators[name].name, **operators[name].attributes},
        )
        for name, node in analysed.norms.items()
    ]
    return Manifest(
        mode="adaptive",
        architecture=came.producer_name or graph.name or source.stem,
        classes=[str(k) for k in range(classes or 0)],
        shape=[size for size in inputs[0].shape if size is not None] if plain else [],
        norms=norms,
        opset=opset_of(analysed.network),
        versions={"augserve": augserve.__version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__},
        inputs=inputs,
        outputs=outputs,
        source=Source(
            file=source.name,
            sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
            producer=f"{came.producer_name} {came.producer_version}".strip(),
            opset=opset_of(came),
        ),
    )


def _described(
    source: Path,
    came: ModelProto,
    original: Original,
    analysed: Analysed,
    operators: Mapping[str, Operator],
) -> Manifest:
    """Return the manifest, or say what of the file it cannot hold."""
    try:
        return _describe(source, came, original, analysed, operators)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ExportError(
            f"the manifest cannot hold {where} of the file: {first['msg']}; rename it there"
        ) from None


def _finish(file: ModelProto, manifest: Manifest) -> None:
    file.ir_version = max(file.ir_version, ir_version_for(file.opset_import))
    file.producer_name, file.producer_version = "augserve", augserve.__version__
    _set_manifest(file, manifest)
    if file.ByteSize() > LARGEST:
        raise ExportError("the converted file would be larger than 2 GB, the most that one ONNX message can hold")


def _set_manifest(file: ModelProto, manifest: Manifest) -> None:
    kept: dict[str, Any] = {entry.key: entry.value for entry in file.metadata_props}
    helper.set_model_props(file, kept | {METADATA_KEY: manifest.model_dump_json()})


def _norms(adaptive: ModelProto, analysed: Analysed, phi: float) -> list[Norm]:
    """Return the augserve nodes of the adaptive network; a Cast may stand between one and the norm's result."""
    made = {name: node for node in adaptive.graph.node for name in node.output}
    norms = []
    for name, old in analysed.norms.items():
        node = made[name] if made[name].domain == DOMAIN else made[made[name].input[0]]
        norms.append(Norm(node, analysed.features[name], phi, eps_of(old)))
    return norms


def _sessions(path: Path, native: Native) -> dict[bool, ort.InferenceSession]:
    """Return the file opened without and, where they are wanted, with the native operators."""
    sessions = {False: open_session(path, native="off")}
    if native != "off":
        session = open_session(path, native=native)
        if kernels_of(session).library is not None:
            sessions[True] = session
    return sessions
