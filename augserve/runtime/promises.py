"""A graph has to be what the manifest of its file promises, or the file is not opened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from augserve.errors import ModelFileError
from augserve.manifest import Manifest, TensorSpec
from augserve.operators import GRAPH_INPUTS, GROUP, INPUT, LOGITS, TRACKED_WEIGHT

MAX_ROW_VALUES = 2**28  # 1 GiB
_ORT_TYPES = {"float32": "float", "float64": "double"}  # the others have NumPy's names


def check_graph(session: ort.InferenceSession, manifest: Manifest, path: Path) -> None:
    """Refuse a file whose graph is not what its manifest says."""
    if manifest.inputs:
        _check_converted(session, manifest, path)
        return
    if math.prod(manifest.shape) > MAX_ROW_VALUES:
        raise ModelFileError(
            f"{path}: expected rows of at most {MAX_ROW_VALUES} values; its manifest promises {manifest.shape}"
        )
    inputs = {node.name: node for node in session.get_inputs()}
    expected = GRAPH_INPUTS if manifest.mode == "adaptive" else (INPUT,)
    if tuple(inputs) != expected:
        raise ModelFileError(
            f"{path}: its manifest promises mode {manifest.mode} with inputs {', '.join(expected)}; "
            f"the graph has {', '.join(inputs)}; export the file again"
        )
    several: list[int | str] = [*manifest.shape[:1], "H", "W"]
    _check_tensor(path, inputs[INPUT], "tensor(float)", several if manifest.sizes else manifest.shape)
    if manifest.sizes and manifest.shape[1:] != list(manifest.sizes[0]):
        raise ModelFileError(f"{path}: its manifest gives shape {manifest.shape} and other sizes {manifest.sizes}")
    if manifest.mode == "adaptive":
        _check_tensor(path, inputs[GROUP], "tensor(int64)", [])
        _check_tensor(path, inputs[TRACKED_WEIGHT], "tensor(float)", [])
    outputs = session.get_outputs()
    if [node.name for node in outputs] != [LOGITS]:
        names = ", ".join(node.name for node in outputs)
        raise ModelFileError(f"{path}: expected one output, {LOGITS}; the graph has {names}; export the file again")
    _check_tensor(path, outputs[0], "tensor(float)", [len(manifest.classes)])
    if manifest.preprocessing is not None:
        p = manifest.preprocessing
        if [len(p.mean), p.height, p.width] != manifest.shape:
            raise ModelFileError(f"{path}: its preprocessing does not make rows of shape {manifest.shape}")


def _check_converted(session: ort.InferenceSession, manifest: Manifest, path: Path) -> None:
    """Refuse a converted file whose inputs and outputs, in this order, are not what its manifest says."""
    own = (
        TensorSpec(name=GROUP, dtype="int64", shape=[]),
        TensorSpec(name=TRACKED_WEIGHT, dtype="float32", shape=[]),
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
