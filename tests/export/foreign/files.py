"""ONNX files as others write them, and what they should answer when their norms take statistics of their own."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor, nn

from augserve.export.foreign.trace import inputs_of
from tests import oracles

Array = np.ndarray
Feed = dict[str, Array]
Shapes = dict[str, tuple[int, ...]]


# --- what a file should answer -----------------------------------------------------------------------------


def expected(
    model: ModelProto, feed: Feed, *, kind: str = "batch", phi: float = 1.5, tracked_weight: float = 0.0
) -> list[Array]:
    """Interpret the original with one group: its norms by the formula, in float64, all else by onnx.reference."""

    class BatchNormalization(OpRun):
        op_domain = ""

        def _run(self, x, scale, bias, mean, var, *_, epsilon=None, **__):  # type: ignore[no-untyped-def]
            values = [v.astype(np.float64) for v in (x, scale, bias, mean, var)]
            center, spread = oracles.statistics(kind, values[0], phi)
            center = tracked_weight * values[3] + (1 - tracked_weight) * center
            spread = tracked_weight * values[4] + (1 - tracked_weight) * spread
            shape = (1, -1, *(1,) * (x.ndim - 2))
            normed = oracles.normalize("batch", values[0], center, spread, 1e-5 if epsilon is None else epsilon)
            return ((normed * values[1].reshape(shape) + values[2].reshape(shape)).astype(x.dtype),)

    return list(ReferenceEvaluator(model, new_ops=[BatchNormalization]).run(None, feed))


# --- files from torch --------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A network with a branch and a flattened head, its running statistics filled."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(96, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        logits: Tensor = self.head(self.pool(torch.relu(self.second(x) + x)))
        return logits


def residual() -> nn.Module:
    torch.manual_seed(0)
    network = Residual()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    for _ in range(5):
        network(torch.randn(16, 3, 8, 8) * 2 + 1)
    return network.eval()


def from_torch(path: Path, opset: int, *, dynamo: bool, half: bool = False, **options: Any) -> ModelProto:
    """Write the network with one of torch's two exporters, the norms left in it."""
    network, rows = residual(), torch.randn(3, 3, 8, 8)
    if half:
        network, rows = network.half(), rows.half()
    keep: dict[str, Any] = {"optimize": False, "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    if not dynamo:
        keep = {
            "training": torch.onnx.TrainingMode.PRESERVE,
            "do_constant_folding": False,
            "dynamic_axes": {"image": {0: "batch"}, "logits": {0: "batch"}},
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (rows,),
            path,
            dynamo=dynamo,
            opset_version=opset,
            input_names=["image"],
            output_names=["logits"],
            verbose=False,
            **keep | options,
        )
    return onnx.load(path)


# --- files written by hand ---------------------------------------------------------------------------------


def network(
    text: str, opset: int, weights: Shapes, *, seed: int = 0, ir_version: int = 7, **opsets: int
) -> ModelProto:
    """Parse a graph in ONNX's text form and add its weights: random, those named ...var positive."""
    imports = ", ".join(f'"{domain}": {version}' for domain, version in {"": opset, **opsets}.items())
    model = onnx.parser.parse_model(f"<ir_version: {ir_version}, opset_import: [{imports}]>\n{text}")
    generator = np.random.default_rng(seed)
    for name, shape in weights.items():
        values = generator.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:])))
        if name.endswith("var"):
            values = generator.uniform(0.5, 2.0, shape)
        if name.endswith("scale"):
            values = generator.uniform(0.5, 1.5, shape)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def norm(name: str, channels: int) -> Shapes:
    """Return the shapes of a norm's parameters, NAME_scale, NAME_bias, NAME_mean and NAME_var."""
    return {f"{name}_{part}": (channels,) for part in ("scale", "bias", "mean", "var")}


def with_constants(model: ModelProto) -> ModelProto:
    """Turn initializers into Constant nodes, and open axes into -1 and '?', as Paddle's first converter did."""
    graph = model.graph
    nodes = list(graph.node)
    constants = [helper.make_node("Constant", [], [t.name], name=t.name, value=t) for t in graph.initializer]
    del graph.node[:], graph.initializer[:]
    graph.node.extend([*constants, *nodes])
    for value in (*graph.input, *graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                dim.Clear()
                if axis == 0:
                    dim.dim_value = -1
                else:
                    dim.dim_param = "?"
    model.producer_name = "PaddlePaddle"
    return model


def with_initializer_inputs(model: ModelProto) -> ModelProto:
    """List initializers among the inputs, as files of IR version 3 have to."""
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def paddle() -> ModelProto:
    """Opset 11, parameters in Constant nodes, a channel gate whose bias is reshaped, Shape-Concat-Reshape."""
    text = """
    g (float[batch, 3, h, w] x) => (float[batch, 2] probability) <
        int64[4] gate_shape = {1, 6, 1, 1}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] rest = {-1},
        float low = {0.0}, float high = {6.0}, float three = {3.0}, float six = {6.0}> {
      c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, conv1)
      b1 = BatchNormalization <epsilon = 0.001, momentum = 0.9> (c1, bn1_scale, bn1_bias, bn1_mean, bn1_var)
      s1 = Add (b1, three)
      s2 = Clip (s1, low, high)
      s3 = Mul (b1, s2)
      a1 = Div (s3, six)
      p1 = GlobalAveragePool (a1)
      g1 = Conv (p1, gate)
      gb = Reshape (gate_bias, gate_shape)
      g2 = Add (g1, gb)
      g3 = HardSigmoid <alpha = 0.2, beta = 0.5> (g2)
      m1 = Mul (a1, g3)
      c2 = Conv <kernel_shape = [1, 1], group = 2> (m1, conv2)
      b2 = BatchNormalization (c2, bn2_scale, bn2_bias, bn2_mean, bn2_var)
      r2 = Relu (b2)
      pool = GlobalAveragePool (r2)
      shape = Shape (pool)
      rows = Slice (shape, zero, one)
      flat = Concat <axis = 0> (rows, rest)
      f = Reshape (pool, flat)
      h1 = MatMul (f, head)
      h2 = Add (h1, head_bias)
      probability = Softmax <axis = 1> (h2)
    }"""
    shapes: Shapes = {"conv1": (6, 3, 3, 3), "gate": (6, 6, 1, 1), "gate_bias": (6,), "conv2": (4, 3, 1, 1)}
    return with_constants(
        network(text, 11, shapes | {"head": (4, 2), "head_bias": (2,)} | norm("bn1", 6) | norm("bn2", 4))
    )


def tensorflow() -> ModelProto:
    """Opset 13, images (N, H, W, C), Transposes around convolutions, names with slashes and colons."""
    text = """
    tf2onnx (float[unk_1, 8, 8, 3] image) => (float[unk_2, 5] scores) <int64[2] axes = {1, 2}> {
      t1 = Transpose <perm = [0, 3, 1, 2]> (image)
      c1 = Conv <kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"> (t1, conv1)
      [model/bn/FusedBatchNormV3] b1 = BatchNormalization <epsilon = 0.001> (c1, bn_scale, bn_bias, bn_mean, bn_var)
      r1 = Relu (b1)
      t2 = Transpose <perm = [0, 2, 3, 1]> (r1)
      m1 = ReduceMean <axes = [1, 2], keepdims = 0> (t2)
      d1 = MatMul (m1, dense)
      d2 = Add (d1, dense_bias)
      scores = LogSoftmax <axis = -1> (d2)
    }"""
    shapes: Shapes = {"conv1": (6, 3, 3, 3), "dense": (6, 5), "dense_bias": (5,)}
    model = network(text.replace("[model/bn/FusedBatchNormV3] ", ""), 13, shapes | norm("bn", 6))
    names = {"image": "input_1:0", "scores": "Identity:0"}
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        if node.op_type == "BatchNormalization":
            node.name = "model/bn/FusedBatchNormV3"
    model.producer_name, model.producer_version = "tf2onnx", "1.16.1"
    return model


def old() -> ModelProto:
    """Opset 9, IR version 3: `spatial` left from opset 7, Dropout, Upsample, 3d convolutions, old axes."""
    text = """
    g (float[n, 2, 4, 4, 4] volume) => (float[n, 3] answer) <float[5] twice = {1.0, 1.0, 2.0, 2.0, 2.0}> {
      c1 = Conv <kernel_shape = [3, 3, 3], pads = [1, 1, 1, 1, 1, 1]> (volume, conv1)
      b1 = BatchNormalization <epsilon = 0.00001, spatial = 1> (c1, bn1_scale, bn1_bias, bn1_mean, bn1_var)
      r1 = Clip <min = 0.0, max = 6.0> (b1)
      d1 = Dropout <ratio = 0.3> (r1)
      u1 = Upsample <mode = "nearest"> (d1, twice)
      c2 = Conv <kernel_shape = [3, 3, 3], strides = [2, 2, 2]> (u1, conv2)
      b2 = BatchNormalization (c2, bn2_scale, bn2_bias, bn2_mean, bn2_var)
      m1 = ReduceMean <axes = [2, 3, 4], keepdims = 1> (b2)
      s1 = Squeeze <axes = [2, 3, 4]> (m1)
      answer = Gemm <transB = 1> (s1, head, head_bias)
    }"""
    shapes: Shapes = {"conv1": (4, 2, 3, 3, 3), "conv2": (5, 4, 3, 3, 3), "head": (3, 5), "head_bias": (3,)}
    return with_initializer_inputs(network(text, 9, shapes | norm("bn1", 4) | norm("bn2", 5)))


def tokens() -> ModelProto:
    """Two inputs with rows and two options without; an embedding, sequences in time-major order, two outputs."""
    text = """
    g (int64[batch, 6] ids, float[batch, 4] features, float temperature, float[2] weights)
        => (float[batch, 3] score, float[batch, 6, 5] states) <int64[1] axis_1 = {1}, int64[1] axis_0 = {0}> {
      e1 = Gather (table, ids)
      e2 = Transpose <perm = [0, 2, 1]> (e1)
      e3 = BatchNormalization (e2, bn1_scale, bn1_bias, bn1_mean, bn1_var)
      t1 = Transpose <perm = [2, 0, 1]> (e3)
      y, h = LSTM <hidden_size = 5> (t1, w, r)
      y1 = Squeeze (y, axis_1)
      states = Transpose <perm = [1, 0, 2]> (y1)
      last = Squeeze (h, axis_0)
      both = Concat <axis = 1> (last, features)
      d1 = Gemm (both, dense)
      d2 = BatchNormalization (d1, bn2_scale, bn2_bias, bn2_mean, bn2_var)
      d3 = Mul (d2, temperature)
      d4 = Concat <axis = 1> (d3, d3)
      d5 = Reshape (d4, pairs)
      d6 = Mul (d5, weights_row)
      score = ReduceSum <keepdims = 0> (d6, last_axis)
      weights_row = Identity (weights)
    }"""
    lines = text.splitlines()
    late = next(line for line in lines if "weights_row = Identity" in line)
    lines.remove(late)
    lines.insert(next(k for k, line in enumerate(lines) if "e1 = Gather" in line), late)
    text = "\n".join(lines).replace(
        "int64[1] axis_0 = {0}", "int64[1] axis_0 = {0}, int64[3] pairs = {-1, 3, 2}, int64[1] last_axis = {2}"
    )
    shapes: Shapes = {"table": (100, 4), "w": (1, 20, 4), "r": (1, 20, 5), "dense": (9, 3)}
    return network(text, 14, shapes | norm("bn1", 4) | norm("bn2", 3), ir_version=8)


def shuffled(rows: int = 1) -> ModelProto:
    """Written for a fixed number of rows: channels shuffled by Reshape and Transpose; a Reshape to [rows, -1]."""
    text = f"""
    g (float[{rows}, 4, 5, 5] data) => (float[{rows}, 3] answer) <
        int64[5] parts = {{{rows}, 2, 3, 5, 5}}, int64[4] whole = {{{rows}, 6, 5, 5}},
        int64[2] flat = {{{rows}, -1}}> {{
      c1 = Conv <kernel_shape = [1, 1], group = 2> (data, conv1)
      p1 = Reshape (c1, parts)
      p2 = Transpose <perm = [0, 2, 1, 3, 4]> (p1)
      p3 = Reshape (p2, whole)
      b1 = BatchNormalization (p3, bn_scale, bn_bias, bn_mean, bn_var)
      f1 = Reshape (b1, flat)
      answer = Gemm (f1, head, head_bias)
    }}"""
    shapes: Shapes = {"conv1": (6, 2, 1, 1), "head": (150, 3), "head_bias": (3,)}
    return network(text, 9, shapes | norm("bn", 6))


def half() -> ModelProto:
    """float16 throughout but the norm's parameters, as opset 15 allows."""
    text = """
    g (float16[n, 3, 6, 6] x) => (float16[n, 4, 4, 4] y) {
      c1 = Conv <kernel_shape = [3, 3]> (x, conv1)
      y = BatchNormalization (c1, bn_scale, bn_bias, bn_mean, bn_var)
    }"""
    model = network(text, 15, {"conv1": (4, 3, 3, 3)} | norm("bn", 4), ir_version=8)
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), "conv1"))
    return model


def small(
    body: str, *, inputs: str = "float[n, 3, 4, 4] x", outputs: str = "y", weights: Shapes | None = None
) -> ModelProto:
    """A graph of opset 18 around a norm `bn` of three channels: what a test of one property needs."""
    given = ", ".join(f"float[n, d] {name}" for name in outputs.split())
    text = f"g ({inputs}) => ({given}) {{ {body} }}"
    model = network(text, 18, norm("bn", 3) | (weights or {}), ir_version=8)
    for value in model.graph.output:
        value.ClearField("type")
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


BN = "BatchNormalization ({}, bn_scale, bn_bias, bn_mean, bn_var)"


def nodes_of(model: ModelProto, kind: str) -> list[NodeProto]:
    """Return the nodes of one operator, those inside subgraphs and functions too."""

    def inside(nodes: Sequence[NodeProto]) -> list[NodeProto]:
        found = []
        for node in nodes:
            found += [node] if node.op_type == kind else []
            for attribute in node.attribute:
                found += inside(attribute.g.node)
        return found

    return inside(model.graph.node) + [n for f in model.functions for n in inside(f.node)]


def write(path: Path, model: ModelProto) -> ModelProto:
    path.write_bytes(model.SerializeToString())
    return model


def close(answers: list, wanted: list, tolerance: float) -> None:
    for answer, right in zip(answers, wanted, strict=True):
        assert answer.shape == right.shape
        assert answer.dtype == right.dtype
        assert np.abs(answer - right).max() <= tolerance * np.abs(right).max()


def in_order(model: ModelProto) -> ModelProto:
    """Put the nodes into topological order, so that a test may write them in any."""
    nodes = list(model.graph.node)
    known = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input} | {""}
    del model.graph.node[:]
    while nodes:
        node = next(node for node in nodes if known.issuperset(inputs_of(node)))
        model.graph.node.append(node)
        known.update(node.output)
        nodes.remove(node)
    return model


FOREIGN: dict[str, Callable[[], ModelProto]] = {
    "paddle": paddle,
    "tensorflow": tensorflow,
    "old": old,
    "tokens": tokens,
    "shuffled": shuffled,
    "shuffled for three rows": lambda: shuffled(3),
}


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)
