"""Files of smaller numbers: float16 everywhere but in the norms, or int8 weights and activations.

    float16    every tensor but the inputs and outputs, and what belongs to a norm: statistics stay float32
    int8       q = round(x / scale) + zero point, scales from real rows (static), weights by output channel

int8 holds for files of mode tracked: batch statistics of rounded values are those of other values, and the range of
an activation is not known before its statistics are. Made by onnxruntime's own converters.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from augserve.errors import ExportError, unknown_choice
from augserve.manifest import FileMode, Precision
from augserve.operators import DOMAIN, INPUT
from augserve.runtime.onnx_graph import drop_unread, hold, names_read

PRECISIONS: tuple[str, ...] = ("float16", "float32", "int8")

CALIBRATION_BATCH = 32


def check_precision(precision: str, mode: FileMode) -> None:
    """Refuse what cannot be written.

    Raises:
        ConfigurationError: an unknown precision.
        ExportError: int8 with statistics that are not folded.
    """
    if precision not in PRECISIONS:
        raise unknown_choice("precision", precision, PRECISIONS)
    if precision == "int8" and mode != "tracked":
        raise ExportError(
            f"a file of mode {mode} normalizes with the statistics of its rows, whose range is not known before; "
            "int8 needs mode 'tracked'"
        )


def converted(model: onnx.ModelProto, precision: Precision, rows: npt.NDArray[np.float32]) -> onnx.ModelProto:
    """Return the model in another precision; inputs and outputs stay float32.

    Args:
        model: float32, checked.
        precision: see `PRECISIONS`.
        rows: real rows (N, C, H, W) to find the ranges of activations with.

    Raises:
        ExportError: a weight that float16 cannot hold.
    """
    if precision == "float32":
        return model
    with _quiet():
        made = _to_float16(model) if precision == "float16" else _to_int8(model, rows)
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    made.ir_version = model.ir_version
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    onnx.checker.check_model(made, full_check=True)
    return made


def _to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    largest = float(np.finfo(np.float16).max)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            if not np.all(np.abs(values) <= largest):
                raise ExportError(f"{tensor.name} holds values beyond {largest:g}, the largest of float16")
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    for k, node in enumerate(kept.graph.node):
        node.name = f"node_{k}"
    _give_norms_their_own(kept)
    halved = onnx.ModelProto()
    halved.CopyFrom(kept)
    _take_out_statistics(halved)
    own = sorted({node.op_type for node in kept.graph.node if node.domain == DOMAIN})
    halved = convert_float_to_float16(
        halved, keep_io_types=True, disable_shape_infer=bool(own), op_block_list=[*DEFAULT_OP_BLOCK_LIST, *own]
    )
    _put_back_statistics(halved, kept)
    made = ir.from_proto(halved)
    made.graph.sort()  # the casts of the inputs came last
    result: onnx.ModelProto = ir.to_proto(made)
    return result


def _give_norms_their_own(model: onnx.ModelProto) -> None:
    """Copy, in place, what a norm shares with other nodes: the tracer stores equal tensors once."""
    graph = model.graph
    elsewhere = {name for node in graph.node for name in _without_parameters(node)}
    copies = {tensor.name: f"{tensor.name}.norm" for tensor in graph.initializer if tensor.name in elsewhere}
    used = set()
    for node in graph.node:
        if node.domain == DOMAIN:
            mine = _parameters(node)
            used.update(copies.keys() & set(node.input[mine]))
            node.input[:] = [
                copies.get(name, name) if k in range(len(node.input))[mine] else name
                for k, name in enumerate(node.input)
            ]
    for tensor in [tensor for tensor in graph.initializer if tensor.name in used]:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = copies[tensor.name]


def _take_out_statistics(model: onnx.ModelProto) -> None:
    """Leave to the norm nodes, in place, their x and residual alone, and drop what made the rest."""
    graph = model.graph
    for node in graph.node:
        if node.domain == DOMAIN:
            node.input[:] = _without_parameters(node)
    drop_unread(graph)
    read = {name for node in graph.node for name in names_read(node)}
    hold(graph.input, [value for value in graph.input if value.name in read])


def _put_back_statistics(halved: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Give the norm nodes what they had in `model`, in float32."""
    graph = halved.graph
    nodes = {node.output[0]: node for node in graph.node}  # a value for two norms was cast twice, alike
    present = {node.name for node in nodes.values()} | {tensor.name for tensor in graph.initializer}
    norms = {node.name: node for node in model.graph.node if node.domain == DOMAIN}
    for node in nodes.values():
        if node.domain == DOMAIN:
            values, whole = list(node.input), norms[node.name]
            node.input[:] = [values[0], *whole.input[_parameters(whole)], *values[1:]]
    hold(graph.node, [*nodes.values(), *(node for node in model.graph.node if node.name not in present)])
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in present)
    hold(graph.input, list(model.graph.input))
    if norms:
        del graph.value_info[:]  # which tell of the types as they were


def _without_parameters(node: onnx.NodeProto) -> list[str]:
    """Return the inputs of any node but those that belong to a norm."""
    inputs = list(node.input)
    return [inputs[0], *inputs[_parameters(node).stop :]] if node.domain == DOMAIN else inputs


def _parameters(node: onnx.NodeProto) -> slice:
    """Return where the node's inputs are that are not of the shape of x."""
    return slice(1, len(node.input) - ("Add" in node.op_type))


def _to_int8(model: onnx.ModelProto, rows: npt.NDArray[np.float32]) -> onnx.ModelProto:
    import tempfile

    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.registry import QDQRegistry

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(np.split(rows, range(CALIBRATION_BATCH, len(rows), CALIBRATION_BATCH)))

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            part = next(self.left, None)
            return None if part is None else {INPUT: part}

    copy = onnx.ModelProto()  # the tensors of what it is given are moved elsewhere
    copy.CopyFrom(model)
    kinds = sorted(
        {*QDQRegistry} - {"MatMul"}
    )  # a spectrum (ConvNorm2d) spans more than 8 bits; linear layers are Gemm
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_static(
            copy,
            path,
            Rows(),
            per_channel=True,
            op_types_to_quantize=kinds,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converters' advice, which is not for whoever exports, to themselves."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)
