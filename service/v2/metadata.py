"""What the server and a model say about themselves in the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from augserve import __version__
from augserve.manifest import Manifest
from augserve.operators import INPUT, LOGITS

PLATFORM = "onnxruntime_onnx"


def input_name(manifest: Manifest) -> str:
    """Return the name of the model's input: that of a converted file, else "input"."""
    return manifest.inputs[0].name if manifest.inputs else INPUT


def output_name(manifest: Manifest) -> str:
    """Return the name of the model's output: that of a converted file, else "logits"."""
    return manifest.outputs[0].name if manifest.outputs else LOGITS


def server_metadata(*, repository_control: bool) -> dict[str, Any]:
    """Return name, version and extensions of the server."""
    extensions = ["binary_tensor_data", "classification"]
    return {
        "name": "augserve",
        "version": __version__,
        "extensions": [*extensions, "model_repository"] if repository_control else extensions,
    }


def model_metadata(name: str, versions: Sequence[str], manifest: Manifest) -> dict[str, Any]:
    """Return name, versions, inputs and outputs of a model; -1 stands for any size."""
    row = [manifest.shape[0], -1, -1] if manifest.sizes else manifest.shape
    return {
        "name": name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [{"name": input_name(manifest), "datatype": "FP32", "shape": [-1, *row]}],
        "outputs": [{"name": output_name(manifest), "datatype": "FP32", "shape": [-1, len(manifest.classes)]}],
    }
