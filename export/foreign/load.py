"""Reading an ONNX file of any origin, and bringing it into the form that conversion works on.

That form: no functions of its own, no initializers among the inputs, BatchNormalization nodes with one output and
no attribute of old opsets, opset 18 or newer. None of it changes an answer; the parity report compares them.
"""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import onnx.inliner
import onnx.version_converter
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, external_data_helper

from augserve.errors import ExportError, ModelFileError
from augserve.export.opsets import OPSET
from augserve.manifest import METADATA_KEY
from augserve.operators import DOMAIN
from augserve.runtime.onnx_graph import hold, nodes_in, subgraphs, tensors_in

logger = logging.getLogger(__name__)

OLDEST_OPSET = 9
LARGEST = 2**31 - 1  # bytes of a protobuf message
NORM = "BatchNormalization"
STANDARD = "ai.onnx"  # the other name of the domain ""
_OLD_RESIZE = 10  # the last opset whose Resize and Upsample know one mapping of coordinates


def read_foreign(path: Path) -> ModelProto:
    """Return the model in the file at `path`, its external data included.

    Raises:
        ModelFileError: no such file, not ONNX, or external data that are missing or lie outside the file's folder.
        ExportError: a file of augserve, or one of more than 2 GB.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise ModelFileError(f"{path}: expected an .onnx file, found {what}")
    if path.stat().st_size > LARGEST:
        raise ExportError(f"{path}: expected a file of less than 2 GB, the most that one ONNX message can hold")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own, whose base class it hides
        raise ModelFileError(f"{path}: not an ONNX file ({_first_line(error)})") from None
    if not model.graph.node:
        raise ModelFileError(f"{path}: not an ONNX file, or one without a node")
    if any(entry.key == METADATA_KEY for entry in model.metadata_props):
        raise ExportError(f"{path}: written by augserve; convert the file that it was made of")
    _read_external_data(model, path)
    return model


def _read_external_data(model: ModelProto, path: Path) -> None:
    folder = path.parent.resolve()
    size = model.ByteSize()
    for tensor in tensors_in(model.graph):
        if not external_data_helper.uses_external_data(tensor):
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        target = (folder / location).resolve()
        if not location or not target.is_relative_to(folder):
            raise ModelFileError(
                f"{path}: tensor {tensor.name!r} has its data in {location!r}, outside the file's folder; put both "
                "into one folder and save the model again"
            )
        if not target.is_file():
            raise ModelFileError(f"{path}: tensor {tensor.name!r} has its data in {location}, which is not there")
        size += next((int(e.value) for e in tensor.external_data if e.key == "length"), target.stat().st_size)
        if size > LARGEST:
            raise ExportError(
                f"{path}: expected less than 2 GB with its external data; a converted file is one piece"
            )
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (onnx.checker.ValidationError, ValueError, OSError) as error:
            raise ModelFileError(f"{path}: the data of tensor {tensor.name!r} cannot be read: {error}") from None
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def clean(model: ModelProto) -> ModelProto:
    """Return the model without functions, its initializers no inputs, its norms free of what old opsets allowed.

    Raises:
        ExportError: no BatchNormalization, one in training mode (named), or an old opset.
    """
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        raise ExportError(
            f"expected opset {OLDEST_OPSET} or newer; the file has {opset}: export it again, or raise it with "
            "onnx.version_converter"
        )
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except RuntimeError as error:
            raise ExportError(f"the functions of the file cannot be resolved: {_first_line(error)}") from None
    else:
        copy = ModelProto()
        copy.CopyFrom(model)
        model = copy
    graph = model.graph
    for node in nodes_in(graph):
        node.domain = "" if node.domain == STANDARD else node.domain
    for entry in model.opset_import:
        entry.domain = "" if entry.domain == STANDARD else entry.domain
    known = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    hold(graph.input, [value for value in graph.input if value.name not in known])
    model.ir_version = max(model.ir_version, 4)  # from 4 on an initializer need not be an input
    for node in _norms(graph):
        _clean_norm(node)
    return model


def raise_opset(model: ModelProto) -> ModelProto:
    """Return the model at opset 18, or as it is where it is newer.

    Raises:
        ExportError: a node that cannot be raised.
    """
    opset = opset_of(model)
    if opset >= OPSET:
        return model
    old_resizes = {n.output[0] for n in model.graph.node if n.op_type in ("Resize", "Upsample") and not n.domain}
    try:
        raised = onnx.version_converter.convert_version(model, OPSET)
        open_plain(raised.SerializeToString(), optimized=False)
    except (RuntimeError, ValueError, ModelFileError) as error:
        raise ExportError(
            f"the file has opset {opset} and cannot be raised to {OPSET}: {_first_line(error)}; export it again "
            f"with opset {OPSET} or newer"
        ) from None
    if opset <= _OLD_RESIZE:  # the converter leaves the new default, which is another mapping
        for node in raised.graph.node:
            if node.op_type == "Resize" and node.output[0] in old_resizes:
                _set(node, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    logger.info("opset raised from %d to %d", opset, OPSET)
    return raised


def open_plain(content: bytes, *, optimized: bool = True) -> ort.InferenceSession:
    """Return a session of a model in memory, with or without ONNX Runtime's optimizations.

    Raises:
        ModelFileError: a model that ONNX Runtime does not take.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        reason = " ".join(str(error).split())[:300]
        raise ModelFileError(f"ONNX Runtime {ort.__version__} cannot run the network: {reason}") from None


def opset_of(model: ModelProto) -> int:
    """Return the version of the standard operators that the model uses; 1 where it does not say."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", STANDARD)), 1)


def show(node: NodeProto) -> str:
    """Return what an error calls a node: its name, or what it makes where it has none."""
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} that makes {node.output[0]!r}"


def refuse_hidden_norms(graph: GraphProto) -> None:
    """Raise ExportError for the first norm inside control flow, by name."""
    for node in graph.node:
        inside = (inner for held in subgraphs(node) for inner in nodes_in(held))
        hidden = next((inner for inner in inside if inner.op_type == NORM and not inner.domain), None)
        if hidden is not None:
            raise ExportError(
                f"{show(hidden)} lies inside {show(node)}, whose course is not known beforehand, so that its rows "
                "cannot be told apart; export the network without control flow around its norms"
            )


def _norms(graph: GraphProto) -> list[NodeProto]:
    """Return all norms, also those inside control flow."""
    nodes = list(nodes_in(graph))
    ours = next((node for node in nodes if node.domain == DOMAIN), None)
    if ours is not None:
        raise ExportError(f"{show(ours)} is an operator of augserve; convert the file that it was made of")
    norms = [node for node in nodes if node.op_type == NORM and not node.domain]
    if not norms:
        raise ExportError(
            "no BatchNormalization node is left: they were folded into the layers before them when the file was "
            "written, so there is nothing to convert; export the network again with its norms kept "
            "(torch.onnx.export: optimize=False, or with dynamo=False training=TrainingMode.PRESERVE and "
            "do_constant_folding=False)"
        )
    return norms


def _clean_norm(node: NodeProto) -> None:
    """Drop what says nothing; refuse what means statistics of the batch already."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    if given.get("training_mode", 0) or any(node.output[1:]):
        how = "training_mode=1" if given.get("training_mode", 0) else f"{len(node.output)} outputs"
        raise ExportError(
            f"{show(node)} is in training mode ({how}): it has statistics of the batch already, and no tracked "
            "ones; put the network into evaluation mode and export it again"
        )
    if given.get("spatial", 1) != 1:
        raise ExportError(f"{show(node)} has spatial=0, statistics for each position, which opset 9 took away")
    del node.output[1:]
    hold(node.attribute, [attribute for attribute in node.attribute if attribute.name != "spatial"])


def _set(node: NodeProto, **texts: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in texts]
    hold(node.attribute, [*kept, *(onnx.helper.make_attribute(name, text) for name, text in texts.items())])


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].strip()[:200]
