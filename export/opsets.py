"""Which opsets a file can be written in: 18, of which the norms are made, up to what is read here."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from augserve.errors import ExportError

OPSET = 18  # of the norms' functions, and of files where no other is asked for
IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads


def check_opset(opset: int) -> None:
    """Refuse an opset that a file cannot have.

    Raises:
        ExportError: below 18, or above what the installed onnx and onnxruntime read.
    """
    if opset < OPSET:
        raise ExportError(
            f"expected opset {OPSET} or newer; got {opset}: the norms are made of ScatterElements with minimum and "
            f"maximum and of ReduceMax with axes as an input, which came with {OPSET}; export with opset {OPSET}, "
            "and use a runtime that reads it"
        )
    if opset > newest_opset():
        raise ExportError(
            f"expected an opset from {OPSET} to {newest_opset()}, the newest that onnx {onnx.__version__} and "
            f"onnxruntime {ort.__version__} both read; got {opset}: choose an older one, or upgrade both"
        )


def ir_version_for(opsets: Sequence[onnx.OperatorSetIdProto]) -> int:
    """Return the oldest IR version that may hold these opsets, at least IR_VERSION."""
    return max(IR_VERSION, helper.find_min_ir_version_for(list(opsets), ignore_unknown=True))


@functools.cache
def newest_opset() -> int:
    """Return the newest opset that the installed onnx describes and the installed onnxruntime opens."""
    newest: int = onnx.defs.onnx_opset_version()
    return next((opset for opset in range(newest, OPSET, -1) if _opens(opset)), OPSET)


def _opens(opset: int) -> bool:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version_for(imports))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime's exceptions share no base class but this
        return False
    return True
