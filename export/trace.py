"""From a torch network to an ONNX graph in which every norm layer is one node of the domain `augserve`.

The statistics mode comes from the wrapper chosen here, never from `.training`: torch's own exporter writes tracked
statistics for a BatchNorm in train mode without a word, so a torch.nn.BatchNorm that would mean something else than
it says is refused by name.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase as TorchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from augserve.errors import ExportError
from augserve.export.operators import OPSET
from augserve.manifest import FileMode
from augserve.norms import GraphNorm, OwnRows, norm_layers
from augserve.norms.conv_norm_onnx import spectra_for_export
from augserve.norms.symbolic import graph_inputs


class _Tracked(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.network(input)
        return logits


class _Batch(_Tracked):
    def forward(self, input: Tensor) -> Tensor:
        group = input.new_zeros(input.shape[0], dtype=torch.int64)
        with graph_inputs(group, input.new_zeros(input.shape[0])):
            logits: Tensor = self.network(input)
        return logits


class _Adaptive(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor, group: Tensor, tracked_weight: Tensor) -> Tensor:
        with graph_inputs(group, tracked_weight):
            logits: Tensor = self.network(input)
        return logits


def trace(model: nn.Module, example: Tensor, mode: FileMode) -> ir.Model:
    """Return the graph of `model`.

    Args:
        model: from float32 rows (N, C, H, W) to logits (N, K), in eval mode.
        example: at least one row of the network's input.
        mode: "tracked" (input: input), "batch" (input: input) or "adaptive" (input, group, tracked_weight).

    Returns:
        The graph, N dynamic, output `logits`; its norm nodes are not lowered yet.

    Raises:
        ExportError: a network that torch cannot trace.
    """
    rows = example[:1].expand(3, *example.shape[1:]).contiguous()  # 1 and 2 might be taken for constants
    inputs: dict[str, Tensor] = {"input": rows}
    if mode == "adaptive":
        inputs |= {"group": torch.zeros(3, dtype=torch.int64), "tracked_weight": torch.zeros(3)}
    wrapper = {"tracked": _Tracked, "batch": _Batch, "adaptive": _Adaptive}[mode](model).eval()
    batch = torch.export.Dim("N", min=1)
    with _quiet(), torch.no_grad(), spectra_for_export(model, rows):
        try:
            program = torch.onnx.export(
                wrapper,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes={name: {0: batch} for name in inputs},
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = error.__cause__ or error
            lines = [line for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
            raise ExportError(
                f"torch cannot trace {type(model).__name__} ({lines[0][:200]}); control flow that depends on the "
                "data must be written with torch.where or torch.cond"
            ) from error
    if program is None:
        raise ExportError(f"torch exported nothing for {type(model).__name__}")
    return program.model


def refuse_what_cannot_be_exported(model: nn.Module, mode: FileMode) -> None:
    """Raise ExportError for the first layer whose statistics the file could not hold, by its name."""
    for name, layer in norm_layers(model).items():
        if mode != "batch" and not layer.track_running_stats:
            raise ExportError(
                f"layer {name!r} ({type(layer).__name__}) keeps no running statistics, which a file of mode {mode} "
                "needs: build it with track_running_stats=True, or export with mode 'batch'"
            )
    for name, module in model.named_modules():
        if isinstance(module, (OwnRows, GraphNorm)):
            raise ExportError(
                f"layer {name!r} ({type(module).__name__}) has no form in ONNX files: use torch's layer, which "
                "normalizes around the mean, or AugNorm of batches"
            )
        if not isinstance(module, TorchNorm):
            continue
        if isinstance(module, _InstanceNorm) and not module.track_running_stats:
            continue  # normalizes each row by itself, whatever the mode
        kind = f"layer {name!r} (torch.nn.{type(module).__name__})"
        if mode != "tracked":
            raise ExportError(
                f"{kind} has no explicit statistics, which a file of mode {mode} needs: convert the network first "
                "with augserve.norms.convert_norm(model, 'batch')"
            )
        if module.training or not module.track_running_stats:
            raise ExportError(
                f"{kind} is left in train mode or keeps no running statistics, so it means batch statistics; call "
                "model.eval() to export tracked ones, or convert with augserve.norms.convert_norm(model, 'batch')"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's own deprecations and its remarks on packages that are not there to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
