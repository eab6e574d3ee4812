"""One file for images of several sizes: a network for each, chosen by the size of the input.

    logits = network of H x W (input)    where input is (N, C, H, W)

Some constants depend on the image's size (ConvNorm2d's spectra, shapes), most do not: each is in the file once, by
its content. An image of another size finds no network and the run fails: the error names a node, whose name says
which sizes there are. (It reshapes one number to (H + 2, W + 2), which no runtime does.)

Networks are branches of `If`, their weights lie outside. ONNX Runtime brings a convolution's weight into its best
layout only if both are in one graph. So convolutions take Sum(weight), which it computes once, on loading; without
that they take 1.8 times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from augserve.errors import ExportError
from augserve.runtime.onnx_graph import following, rename_in_node, subgraphs

Size = tuple[int, int]
Names = dict[str, str]


def merge_sizes(models: Mapping[Size, ModelProto]) -> ModelProto:
    """Return one model that takes images of every size for which there is a model.

    Args:
        models: the same network for each image size (H, W): inputs and outputs of the same names and types, one of
            the inputs (N, C, H, W) with its size fixed. Opset 18 or higher, equal in all.

    Returns:
        A new model, H and W of that input dynamic. Metadata are the first model's.

    Raises:
        ExportError: no model; models that differ in more than the size; or not one input of that size.
    """
    if not models:
        raise ExportError("expected a model for at least one image size; got none")
    image = _check(models)
    first = next(iter(models.values()))
    merged = ModelProto()
    merged.CopyFrom(first)
    del merged.graph.node[:], merged.graph.initializer[:], merged.graph.output[:], merged.graph.value_info[:]
    _unite(merged, models)
    for value in merged.graph.input:
        if value.name == image:
            for dim, symbol in zip(value.type.tensor_type.shape.dim[2:], ("H", "W"), strict=True):
                dim.dim_param = symbol
    outputs = [
        _common([model.graph.output[k] for model in models.values()]) for k in range(len(first.graph.output))
    ]
    merged.graph.output.extend(outputs)
    tensors = _Tensors(models.values())
    rest = _failure(list(models), outputs)
    for k, (size, model) in reversed(list(enumerate(models.items()))):
        branch = _branch(model, size, tensors.names_of(model), set(tensors.by_name))
        made = [f"{value.name}/{k}" if k else value.name for value in outputs]
        choice = [
            _constant(f"size/{k}/place", [], [k]),
            helper.make_node("Gather", ["size/found", f"size/{k}/place"], [f"size/{k}/found"]),
            helper.make_node("If", [f"size/{k}/found"], made, then_branch=branch, else_branch=rest),
        ]
        renamed = [_named(value, name) for value, name in zip(outputs, made, strict=True)]
        rest = helper.make_graph(choice, f"size_{k}", [], renamed)
    merged.graph.node.extend([*_find(image, list(models)), *rest.node])
    merged.graph.initializer.extend(tensors.by_name.values())
    return merged


def _check(models: Mapping[Size, ModelProto]) -> str:
    """Return the name of the image input, or raise ExportError for models that are not one network."""
    kinds = [
        [(v.name, v.type.tensor_type.elem_type, _dims(v)[:2]) for v in (*model.graph.input, *model.graph.output)]
        for model in models.values()
    ]
    if any(kind != kinds[0] for kind in kinds):
        raise ExportError("expected models with the same inputs and outputs, but for the image's size")
    candidates = [
        value.name
        for k, value in enumerate(next(iter(models.values())).graph.input)
        if all(_dims(model.graph.input[k])[2:] == list(size) for size, model in models.items())
    ]
    if len(candidates) != 1:
        raise ExportError(
            f"expected one input (N, C, H, W) of the sizes {_listed(list(models))} in their models; "
            f"got {candidates or 'none'}: export each size from an example of that size"
        )
    name: str = candidates[0]
    return name


def _unite(merged: ModelProto, models: Mapping[Size, ModelProto]) -> None:
    """Give the model the opsets and functions of all."""
    opsets: dict[str, int] = {}
    functions: dict[tuple[str, str], onnx.FunctionProto] = {}
    for model in models.values():
        for entry in model.opset_import:
            if opsets.setdefault(entry.domain, entry.version) != entry.version:
                raise ExportError(f"expected models of one opset; got {opsets[entry.domain]} and {entry.version}")
        for function in model.functions:
            if functions.setdefault((function.domain, function.name), function) != function:
                raise ExportError(f"expected one meaning of {function.domain}.{function.name}; got two")
    del merged.opset_import[:], merged.functions[:]
    merged.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    merged.functions.extend(functions.values())


class _Tensors:
    """The initializers of all models: equal ones once, under names that no value in any model has."""

    def __init__(self, models: Iterable[ModelProto]) -> None:
        models = list(models)
        self.taken = {name for model in models for name in _values(model.graph)}
        self.by_name: dict[str, TensorProto] = {}
        self.by_content: dict[tuple[int, tuple[int, ...], bytes], str] = {}
        self.names = {id(model): self._add(model) for model in models}

    def names_of(self, model: ModelProto) -> Names:
        """Return what the model's initializers are called."""
        return self.names[id(model)]

    def _add(self, model: ModelProto) -> Names:
        names: Names = {}
        for tensor in model.graph.initializer:
            content = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
            if content not in self.by_content:
                name, k = tensor.name, 1
                while name in self.taken or name in self.by_name:
                    name, k = f"{tensor.name}/{k}", k + 1
                self.by_content[content] = name
                self.by_name[name] = TensorProto()
                self.by_name[name].CopyFrom(tensor)
                self.by_name[name].name = name
            names[tensor.name] = self.by_content[content]
        return names


def _values(graph: GraphProto) -> Iterator[str]:
    """Yield the names of inputs and of all that nodes make, also in subgraphs, and of subgraphs' initializers."""
    yield from (value.name for value in graph.input)
    for node in graph.node:
        yield from node.output
        for inner in subgraphs(node):
            yield from _values(inner)
            yield from (tensor.name for tensor in inner.initializer)


def _branch(model: ModelProto, size: Size, names: Names, weights: set[str]) -> GraphProto:
    """Return the network as the branch of an If; its initializers lie outside, under their new names."""
    graph = GraphProto(name=_listed([size]))
    made = {name for node in model.graph.node for name in node.output}
    ends = {value.name: f"{value.name}/{_listed([size])}" for value in model.graph.output}
    names = names | {name: end for name, end in ends.items() if name in made}
    here: Names = {}
    for node in model.graph.node:
        copied = NodeProto()
        copied.CopyFrom(node)
        rename_in_node(copied, following(names))
        if (copied.domain, copied.op_type) == ("", "Conv"):
            for k, name in enumerate(copied.input):
                if name in weights:
                    if name not in here:
                        here[name] = f"{name}/here"
                        graph.node.append(helper.make_node("Sum", [name], [here[name]]))
                    copied.input[k] = here[name]
        graph.node.append(copied)
    for value in model.graph.output:
        if value.name not in made:  # an input or an initializer handed on
            graph.node.append(helper.make_node("Identity", [names.get(value.name, value.name)], [ends[value.name]]))
        graph.output.append(_named(value, ends[value.name]))
    return graph


def _find(image: str, sizes: list[Size]) -> list[NodeProto]:
    """Return the nodes that compare the image's size with those there are: size/found, one truth for each."""
    return [
        helper.make_node("Shape", [image], ["size/given"], start=2),
        _constant("size/known", [len(sizes), 2], [length for size in sizes for length in size]),
        helper.make_node("Equal", ["size/known", "size/given"], ["size/equal"]),
        helper.make_node("Cast", ["size/equal"], ["size/equal_number"], to=TensorProto.INT64),
        _constant("size/axis", [1], [1]),
        helper.make_node("ReduceMin", ["size/equal_number", "size/axis"], ["size/both"], keepdims=0),
        helper.make_node("Cast", ["size/both"], ["size/found"], to=TensorProto.BOOL),
    ]


def _failure(sizes: list[Size], outputs: list[ValueInfoProto]) -> GraphProto:
    """Return the branch for all other sizes, which fails."""
    graph = GraphProto(name="no_size")
    graph.node.extend(
        [
            _constant("size/two", [1], [2]),
            helper.make_node("Add", ["size/given", "size/two"], ["size/larger"]),
            helper.make_node(
                "Reshape",
                ["size/two", "size/larger"],
                ["size/none"],
                name=f"this file takes images of {_listed(sizes)} (height x width)",
            ),
        ]
    )
    for value in outputs:
        shape = [max(dim or 1, 1) for dim in _dims(value)]
        stem = f"size/none/{value.name}"
        graph.node.extend(
            [
                helper.make_node("Cast", ["size/none"], [f"{stem}/cast"], to=value.type.tensor_type.elem_type),
                _constant(f"{stem}/shape", [len(shape)], [-1, *shape[1:]] if shape else []),
                helper.make_node("Reshape", [f"{stem}/cast", f"{stem}/shape"], [stem]),
            ]
        )
        graph.output.append(_named(value, stem))
    return graph


def _listed(sizes: list[Size]) -> str:
    names = [f"{height}x{width}" for height, width in sizes]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _dims(value: ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]


def _common(values: list[ValueInfoProto]) -> ValueInfoProto:
    """Return the description of an output that holds for all: lengths that differ are left open."""
    shapes = [_dims(value) for value in values]
    first = values[0]
    if any(len(shape) != len(shapes[0]) for shape in shapes):
        raise ExportError(f"expected an output {first.name!r} with the same number of dimensions in all models")
    shared = ValueInfoProto()
    shared.CopyFrom(first)
    for k, dim in enumerate(shared.type.tensor_type.shape.dim):
        if any(shape[k] != shapes[0][k] for shape in shapes):
            dim.Clear()
    return shared


def _named(value: ValueInfoProto, name: str) -> ValueInfoProto:
    named = ValueInfoProto()
    named.CopyFrom(value)
    named.name = name
    return named


def _constant(name: str, shape: list[int], values: list[int]) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=helper.make_tensor("", TensorProto.INT64, shape, values))
