"""Writing one file: trace, lower the norms, describe, prove, and only then put it in place."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

import augserve
from augserve.errors import ExportError, InputError, unknown_choice
from augserve.export.operators.filters import lower_filters
from augserve.export.operators.fold import lower_tracked
from augserve.export.operators.functions import functions_of
from augserve.export.operators.fuse import fuse_endings
from augserve.export.opsets import OPSET, check_opset, ir_version_for
from augserve.export.parity import ParityReport, compare, compare_accuracy
from augserve.export.precision import check_precision, converted
from augserve.export.sizes import Size, merge_sizes
from augserve.export.tracing.trace import refuse_what_cannot_be_exported, trace
from augserve.files import write_atomic
from augserve.manifest import FILE_MODES, METADATA_KEY, FileMode, Manifest, NormLayer, ParityCheck, Precision
from augserve.norms import norm_layers
from augserve.norms.modes import evaluating
from augserve.runtime import check_rows, kernels_of, open_session, read_manifest, rows_with_own_statistics
from augserve.runtime.kernels import Native
from augserve.runtime.seal import seal


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    example: Tensor,
    mode: FileMode = "adaptive",
    manifest: Mapping[str, Any] | None = None,
    native: Native = "auto",
    precision: Precision = "float32",
    validation: tuple[Tensor, Tensor] | None = None,
    sizes: Sequence[tuple[int, int]] = (),
    opset: int = OPSET,
) -> ParityReport:
    """Export a network and prove that the file answers as the network does.

    Args:
        model: any module from float32 (N, C, H, W) to logits (N, K) whose norm layers are ours. It is not changed.
        path: of the file; it is replaced in one step, and only when every check has passed.
        example: real rows (N, C, H, W), float32: they give the input's shape and the parity report its data.
        mode: "tracked" (running statistics folded into the weights; input: input), "batch" (statistics of the
            whole run; input: input) or "adaptive" (inputs input, group int64 (N,), tracked_weight float (N,)).
        manifest: what else the file should say of itself: architecture, classes, preprocessing, data,
            checkpoint_sha256 (see `augserve.manifest.Manifest`).
        native: use of the native operator library in the parity report: "auto" (where there is one), "on", "off".
        precision: "float32", "float16" (statistics stay float32) or "int8" (mode "tracked" alone; the ranges of the
            activations are those of the example).
        validation: rows (N, C, H, W) and labels int64 (N,) that the network was not trained on: with them the
            manifest of a float16 or int8 file tells its accuracy beside that of float32.
        sizes: image sizes (H, W) that the file takes beside the example's, in float32. Each has its own network of
            operators, weights are shared; the report is about the example in each of them.
        opset: of the standard operators, from 18 to the newest that the installed onnx and onnxruntime read.

    Returns:
        The parity report, which the file's manifest holds as well.

    Raises:
        ConfigurationError: an unknown mode, precision or use of native operators; "on" without a library.
        InputError: an example that the network does not take.
        ExportError: a layer that cannot be exported (named), an opset that cannot be written, or a parity check
            that failed; nothing is written.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), augserve.norms.AugNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
        >>> rows = torch.randn(8, 3, 8, 8)
        >>> _ = network(rows)
        >>> report = export_onnx(network.eval(), "example.onnx", example=rows)
    """
    if mode not in FILE_MODES:
        raise unknown_choice("file mode", mode, FILE_MODES)
    check_precision(precision, mode)
    check_opset(opset)
    path = Path(path)
    if path.is_dir():
        raise ExportError(f"{path}: expected the name of a file to write; this is a folder")
    if not path.parent.is_dir():
        raise ExportError(f"{path.parent}: no such folder to write {path.name} into")
    refuse_what_cannot_be_exported(model, mode)
    with evaluating(model):
        examples = _in_sizes(example, sizes, precision)
        norms, classes = _look_at_all(model, examples)
        given = {**(manifest or {}), "precision": precision, "opset": opset}
        if len(examples) > 1:
            given["sizes"] = list(examples)
        description = _describe(model, mode, norms, classes, tuple(example.shape[1:]), given)
        models = {
            size: _finish(trace(model, rows, mode, opset), mode, description) for size, rows in examples.items()
        }
        float32 = next(iter(models.values())) if len(models) == 1 else _merged(models)
        proto = converted(float32, precision, example.numpy())
        del proto.graph.value_info[:]  # shapes between, which runtimes infer by themselves
        with tempfile.TemporaryDirectory() as folder:
            sessions = _sessions(proto, Path(folder) / path.name, native if proto.functions else "off")
            min_rows = rows_with_own_statistics(description)
            report = _compare_all(model, sessions, examples, mode, min_rows, precision)
            accuracy = None
            if precision != "float32" and validation is not None:
                whole = _sessions(float32, Path(folder) / "float32.onnx", "off")
                accuracy = compare_accuracy(sessions[max(sessions)], whole[False], *validation)
    report = dataclasses.replace(report, accuracy=accuracy)
    proven = description.model_copy(update={"parity": list(report.checks), "accuracy": accuracy})
    _set_manifest(proto, proven)
    write_atomic(path, seal(proto.SerializeToString()))
    return report


def verify_onnx(model: nn.Module, path: str | Path, *, example: Tensor, native: Native = "auto") -> ParityReport:
    """Prove once more that a file answers as a network does; nothing is written.

    Args:
        model: the network that the file was exported from. It is not changed.
        path: of the file, in any mode and precision.
        example: real rows (N, C, H, W), float32, of the file's shape.
        native: use of the native operator library, as in `export_onnx`.

    Raises:
        ModelFileError: not such a file, or a damaged one.
        InputError: rows of another shape.
        ExportError: a check failed; it is named.
    """
    session = open_session(path, native="off")
    manifest = read_manifest(session, path)
    rows = torch.from_numpy(check_rows(example.numpy(), manifest))
    sessions = {False: session}
    if native != "off" and manifest.mode != "tracked":
        other = open_session(path, native=native)
        if kernels_of(other).library is not None:
            sessions[True] = other
    with evaluating(model):
        refuse_what_cannot_be_exported(model, manifest.mode)
        min_rows = rows_with_own_statistics(manifest)
        return compare(model, sessions, rows, manifest.mode, min_rows, manifest.precision)


def _sessions(proto: onnx.ModelProto, path: Path, native: Native) -> dict[bool, ort.InferenceSession]:
    """Return the file opened without and, where they are wanted and of use, with the native operators."""
    path.write_bytes(seal(proto.SerializeToString()))
    sessions = {False: open_session(path, native="off")}
    if native != "off":
        session = open_session(path, native=native)
        if kernels_of(session).library is not None:
            sessions[True] = session
    return sessions


def _in_sizes(example: Tensor, sizes: Sequence[tuple[int, int]], precision: Precision) -> dict[Size, Tensor]:
    """Return the example, and what it is in each further size."""
    if not sizes:
        return {(0, 0): example}
    if precision != "float32":
        raise ExportError(f"a file of several image sizes is written in float32 only; got precision {precision!r}")
    if not isinstance(example, Tensor) or example.ndim != 4:
        raise InputError("sizes are those of images: expected an example (N, C, H, W)")
    examples: dict[Size, Tensor] = {(example.shape[2], example.shape[3]): example}
    for height, width in sizes:
        if height < 1 or width < 1:
            raise InputError(f"expected image sizes (H, W) of 1 or more; got {(height, width)}")
        resized = functional.interpolate(example, (height, width), mode="bilinear", align_corners=False)
        examples.setdefault((int(height), int(width)), resized)
    return examples


def _look_at_all(model: nn.Module, examples: Mapping[Size, Tensor]) -> tuple[list[NormLayer], int]:
    """Run the example in every size: each layer's positions are those of the smallest."""
    (norms, classes), *others = [_look(model, example) for example in examples.values()]
    for more, _ in others:
        fewest = {layer.name: layer.positions for layer in more}
        norms = [
            layer.model_copy(update={"positions": min(layer.positions, fewest.get(layer.name, layer.positions))})
            for layer in norms
        ]
    return norms, classes


def _merged(models: Mapping[Size, onnx.ModelProto]) -> onnx.ModelProto:
    merged = merge_sizes(models)
    onnx.checker.check_model(merged, full_check=True)
    return merged


def _compare_all(
    model: nn.Module,
    sessions: Mapping[bool, ort.InferenceSession],
    examples: Mapping[Size, Tensor],
    mode: FileMode,
    min_rows: int,
    precision: Precision,
) -> ParityReport:
    """Return one report about the example in every size."""
    checks: list[ParityCheck] = []
    for (height, width), example in examples.items():
        report = compare(model, sessions, example, mode, min_rows, precision)
        names = f", {height} x {width}" if len(examples) > 1 else ""
        checks += [check.model_copy(update={"name": check.name + names}) for check in report.checks]
    return ParityReport(mode, tuple(checks))


def _look(model: nn.Module, example: Tensor) -> tuple[list[NormLayer], int]:
    """Run the example once: the norm layers with their positions L, and the number of classes K."""
    if not isinstance(example, Tensor) or example.dtype != torch.float32 or example.ndim < 2 or len(example) < 1:
        came = f"{example.dtype} {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"expected example rows as a float32 tensor (N, C, H, W) with N >= 1; got {came}")
    norms: dict[str, NormLayer] = {}
    handles = []
    for name, layer in norm_layers(model).items():

        def record(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            kind, attributes = norm_layers(model)[name].operator()
            norms[name] = NormLayer(
                name=name,
                kind=type(module).__name__,
                num_features=inputs[0].shape[1],
                positions=inputs[0][0, 0].numel(),
                options={"operator": kind, **attributes},
            )

        handles.append(layer.register_forward_pre_hook(record))
    try:
        with torch.no_grad():
            logits = model(example[:2])
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"the network does not take the example rows {tuple(example.shape)}: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        came = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ExportError(f"expected a network that answers with logits (N, K); got {came}")
    return list(norms.values()), int(logits.shape[1])


def _describe(
    model: nn.Module,
    mode: FileMode,
    norms: list[NormLayer],
    classes: int,
    shape: tuple[int, ...],
    given: dict[str, Any],
) -> Manifest:
    modes = {layer.statistics.mode for layer in norm_layers(model).values()}
    values: dict[str, Any] = {
        "architecture": type(model).__name__,
        "classes": [str(k) for k in range(classes)],
        "default_mode": "batch" if modes == {"batch"} else "tracked",
        **given,
        "mode": mode,
        "shape": list(shape),
        "norms": norms,
        "versions": {
            "augserve": augserve.__version__,
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            "onnxruntime": ort.__version__,
        },
        "parity": [],
    }
    if mode != "adaptive":
        values["default_mode"] = mode
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ExportError(f"the manifest cannot hold {where}: {first['msg']}") from None
    if len(manifest.classes) != classes:
        raise ExportError(f"expected {classes} class names, as many as logits; got {len(manifest.classes)}")
    return manifest


def _finish(traced: ir.Model, mode: FileMode, manifest: Manifest) -> onnx.ModelProto:
    """Give the norm nodes their meaning, attach the manifest, and check the whole."""
    if mode == "tracked":
        lower_tracked(traced)
    else:
        fuse_endings(traced)
    lower_filters(traced)
    proto = ir.to_proto(traced)
    proto.functions.extend(functions_of(proto.graph.node, manifest.opset))
    proto.ir_version = ir_version_for(proto.opset_import)
    proto.producer_name, proto.producer_version = "augserve", augserve.__version__
    del proto.metadata_props[:]
    for node in proto.graph.node:  # the tracer's notes on source lines, which name the exporter's machine
        del node.metadata_props[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    _set_manifest(proto, manifest)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _set_manifest(proto: onnx.ModelProto, manifest: Manifest) -> None:
    onnx.helper.set_model_props(proto, {METADATA_KEY: manifest.model_dump_json()})
