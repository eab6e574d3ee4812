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
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from torch import Tensor, nn

from augserve.errors import ExportError
from augserve.export.opsets import OPSET
from augserve.export.tracing.constants import DataIsDetached, constant_at_fault
from augserve.export.tracing.conv_norm import Pair, Spectra, conv_norm_nodes, spectra_of
from augserve.export.tracing.culprit import MANY, layer_of, layer_that_fixes_rows
from augserve.export.tracing.norm_node import norm_node
from augserve.export.tracing.weights import computed_weights
from augserve.manifest import FileMode
from augserve.norms import ConvNorm2d, GraphNorm, OwnRows, StatisticsNorm, norm_layers
from augserve.norms.torch_private import BATCH_NORMS, INSTANCE_NORMS
from augserve.norms.tracing import traced_by
from augserve.operators import GROUP, INPUT, LOGITS, TRACKED_WEIGHT

_MISSING = "No ONNX function found for <OpOverload(op='"


class _Nodes(NamedTuple):
    """What layers are in the graph: a `norms.tracing.Tracer`."""

    spectra: Spectra
    steering: tuple[Tensor, Tensor] | None = None  # group and tracked_weight of each row

    def norm(self, layer: StatisticsNorm, x: Tensor) -> Tensor:
        return norm_node(layer, x, self.steering)

    def conv_norm(self, layer: ConvNorm2d, size: Pair, x: Tensor, lengths: list[Pair]) -> Tensor | None:
        constants = self.spectra.get((id(layer), size))
        return None if constants is None else conv_norm_nodes(layer, constants, x, lengths)


class _Fixed(nn.Module):
    """A network with statistics that are the file's choice: running ones, or those of all rows."""

    def __init__(self, network: nn.Module, spectra: Spectra, mode: FileMode) -> None:
        super().__init__()
        self.network, self.spectra, self.mode = network, spectra, mode

    def forward(self, input: Tensor) -> Tensor:
        steering = None
        if self.mode == "batch":
            steering = input.new_zeros(input.shape[0], dtype=torch.int64), input.new_zeros(input.shape[0])
        with traced_by(_Nodes(self.spectra, steering)):
            logits: Tensor = self.network(input)
        return logits


class _Adaptive(_Fixed):
    def forward(self, input: Tensor, group: Tensor, tracked_weight: Tensor) -> Tensor:  # type: ignore[override]
        with traced_by(_Nodes(self.spectra, (group, tracked_weight))):
            logits: Tensor = self.network(input)
        return logits


def trace(model: nn.Module, example: Tensor, mode: FileMode, opset: int = OPSET) -> ir.Model:
    """Return the graph of `model`.

    Args:
        model: from float32 rows (N, C, H, W) to logits (N, K), in eval mode.
        example: at least one row of the network's input.
        mode: "tracked" (input: input), "batch" (input: input) or "adaptive" (input, group, tracked_weight).
        opset: of the standard operators.

    Returns:
        The graph, N dynamic, output `logits`; its norm nodes are not lowered yet.

    Raises:
        ExportError: a network that torch cannot trace, or only for some numbers of rows; the layer is named.
    """
    rows = example[:1].expand(3, *example.shape[1:]).contiguous()  # 1 and 2 might be taken for constants
    inputs: dict[str, Tensor] = {INPUT: rows}
    if mode == "adaptive":
        inputs |= {GROUP: torch.zeros(3, dtype=torch.int64), TRACKED_WEIGHT: torch.zeros(3)}
    batch = torch.export.Dim("N", min=1)

    def run_torch() -> torch.onnx.ONNXProgram | None:
        return torch.onnx.export(
            (_Adaptive if mode == "adaptive" else _Fixed)(model, spectra, mode).eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=[LOGITS],
            dynamic_shapes={name: {0: batch} for name in inputs},
            verbose=False,
        )

    with _quiet(), torch.no_grad(), DataIsDetached(), computed_weights(model):
        spectra = spectra_of(model, rows)
        try:
            program = run_torch()
        except torch.onnx.errors.OnnxExporterError as error:
            raise _refusal(error, model) from error
        if program is None:
            raise ExportError(f"torch exported nothing for {type(model).__name__}")
        if not _takes_any_rows(program):
            raise ExportError(
                f"{layer_that_fixes_rows(model, run_torch)} can be traced for some numbers N of rows, and a file "
                "takes any: its Python must not ask for x.shape[0] (if, range, len, tolist, a view of fixed size)"
            )
    if program.model.opset_imports[""] != opset:
        raise ExportError(
            f"{type(model).__name__} cannot be written in opset {opset}: torch stayed at "
            f"{program.model.opset_imports['']}; export with opset {OPSET}"
        )
    return program.model


def _refusal(error: Exception, model: nn.Module) -> ExportError:
    """Return what torch's error means for the person who exports."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    if _MISSING in lines[0]:
        operator = lines[0].removeprefix(_MISSING).split("'")[0]
        advice = (
            "an operator without a form in ONNX: write the layer in others, or do its work outside of the network"
        )
        return ExportError(f"{layer_of(error, model)} calls {operator}, {advice}")
    constant = constant_at_fault(lines[0], layer_of(error, model), model)
    if constant is not None:
        return ExportError(constant)
    return ExportError(
        f"torch cannot trace {layer_of(error, model)}: {lines[0][:200]}; control flow that depends on the data "
        "must be written with torch.where or torch.cond, and what is no tensor stays outside of the network"
    )


def _takes_any_rows(program: torch.onnx.ONNXProgram) -> bool:
    """Tell whether a trace holds for all N >= 1; torch narrows the range where the network's Python asks for N."""
    size = program.model.graph.inputs[0].shape
    if size is None or isinstance(size[0], int) or program.exported_program is None:
        return False
    nodes = program.exported_program.graph.find_nodes(op="placeholder")
    rows = next(node.meta["val"] for node in nodes if node.name == INPUT).shape[0]
    if isinstance(rows, int):
        return False
    limits = program.exported_program.range_constraints.get(rows.node.expr)
    return limits is None or bool(limits.lower <= 2 and limits.upper > MANY)  # the parity report tells of 1 and 2


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
        if not isinstance(module, (*BATCH_NORMS, *INSTANCE_NORMS)):
            continue
        norm: Any = module
        if isinstance(module, INSTANCE_NORMS) and not norm.track_running_stats:
            continue  # normalizes each row by itself, whatever the mode
        kind = f"layer {name!r} (torch.nn.{type(module).__name__})"
        if mode != "tracked":
            raise ExportError(
                f"{kind} has no explicit statistics, which a file of mode {mode} needs: convert the network first "
                "with augserve.norms.convert_norm(model, 'batch')"
            )
        if norm.training or not norm.track_running_stats:
            raise ExportError(
                f"{kind} is left in train mode or keeps no running statistics, so it means batch statistics; call "
                "model.eval() to export tracked ones, or convert with augserve.norms.convert_norm(model, 'batch')"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's own deprecations and its remarks on packages that are not there to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
