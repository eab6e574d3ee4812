"""From BatchNormalization nodes to those of augserve.

    BatchNormalization(x, scale, B, mean, var)  ->  augserve.NAME(x, scale, B, mean, var, group, tracked_weight)

Statistics are float32: around a node of another type stand Casts. For an AugNorm the file's running mean and
variance stand in for the generalized median and the spread about it, which the file does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx import ModelProto, NodeProto, TensorProto, helper

from augserve.errors import ExportError, unknown_choice
from augserve.export.foreign.load import NORM
from augserve.export.operators.functions import functions_of
from augserve.export.operators.fuse import fuse_endings
from augserve.norms import AugNorm, BatchNorm
from augserve.operators import DOMAIN, GROUP, STEERING, TRACKED_WEIGHT, VERSION
from augserve.runtime.onnx_graph import following, hold, names_in, rename

NORMS = ("aug", "batch")
EPS = 1e-5  # of a BatchNormalization that does not say


@dataclass(frozen=True)
class Operator:
    """The operator that a norm becomes, with its attributes."""

    name: str
    attributes: Mapping[str, float | int]


def operator_for(norm: str, phi: float, eps: float) -> Operator:
    """Return the operator of a norm.

    Raises:
        ConfigurationError: an unknown norm, or phi outside [1, inf].
    """
    if norm not in NORMS:
        raise unknown_choice("norm", norm, NORMS)
    layer = AugNorm(1, phi, eps) if norm == "aug" else BatchNorm(1, eps)
    return Operator(*layer.operator())


def eps_of(node: NodeProto) -> float:
    """Return a BatchNormalization node's epsilon."""
    return next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), EPS)


def free_names(model: ModelProto) -> None:
    """Rename, in place, values inside the network that have the name of an input that conversion adds.

    Raises:
        ExportError: an output has such a name.
    """
    taken = names_in(model.graph)
    new = {}
    for name in STEERING:
        if any(value.name == name for value in model.graph.output):
            raise ExportError(f"the output {name!r} has the name of an input that conversion adds; rename it first")
        candidate = f"{name}.original"
        while candidate in taken:
            candidate += "_"
        new[name] = candidate
    if taken & set(STEERING):
        rename(model.graph, following(new))


def adaptive_network(model: ModelProto, operators: Mapping[str, Operator], symbol: str) -> ModelProto:
    """Return the network with augserve nodes for those BatchNormalization nodes that `operators` names by result.

    Its inputs are the model's, then group and tracked_weight; the functions of the operators are attached.
    """
    adaptive = ModelProto()
    adaptive.CopyFrom(model)
    graph = adaptive.graph
    types = _types(model)
    nodes: list[NodeProto] = []
    for node in graph.node:
        operator = operators.get(node.output[0]) if node.op_type == NORM and node.output else None
        nodes += [node] if operator is None else _norm(node, operator, types)
    hold(graph.node, nodes)
    graph.input.append(helper.make_tensor_value_info(GROUP, TensorProto.INT64, [symbol]))
    graph.input.append(helper.make_tensor_value_info(TRACKED_WEIGHT, TensorProto.FLOAT, [symbol]))
    adaptive.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    return with_functions(adaptive)


def with_functions(model: ModelProto) -> ModelProto:
    """Attach the functions of the model's augserve nodes, in place, at the model's own opset; return it."""
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    del model.functions[:]
    model.functions.extend(functions_of(model.graph.node, opset))
    return model


def fused(model: ModelProto) -> ModelProto:
    """Return the adaptive network with additions and ReLUs put into the norm nodes before them."""
    typed = onnx.shape_inference.infer_shapes(model)
    network = ir.from_proto(typed)
    for node in network.graph:
        for value in node.outputs:
            if value.shape is not None and any(
                isinstance(d, ir.SymbolicDim) and d.value is None for d in value.shape
            ):
                value.shape = None  # two sizes that are not known are not equal
    network.functions.clear()
    fuse_endings(network)
    result = ir.to_proto(network)
    del result.graph.value_info[:]
    return with_functions(result)


def _norm(node: NodeProto, operator: Operator, types: Mapping[str, int]) -> list[NodeProto]:
    """Return the norm's node, between Casts where its inputs are not float32."""
    x, *parameters = node.input
    kind = types.get(x, TensorProto.FLOAT)
    result = node.output[0]
    nodes, inputs = [], []
    for k, name in enumerate((x, *parameters)):
        if types.get(name, TensorProto.FLOAT) == TensorProto.FLOAT:
            inputs.append(name)
            continue
        inputs.append(f"{result}.input_{k}_float32")
        nodes.append(helper.make_node("Cast", [name], [inputs[-1]], to=TensorProto.FLOAT))
    made = result if kind == TensorProto.FLOAT else f"{result}.float32"
    ours = helper.make_node(operator.name, [*inputs, *STEERING], [made], name=node.name, domain=DOMAIN)
    ours.attribute.extend(helper.make_attribute(name, value) for name, value in operator.attributes.items())
    nodes.append(ours)
    if made != result:
        nodes.append(helper.make_node("Cast", [made], [result], to=kind))
    return nodes


def _types(model: ModelProto) -> dict[str, int]:
    """Return the element type of every value of which it is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
