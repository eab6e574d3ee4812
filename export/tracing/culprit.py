"""Which layer a failed trace is about: torch's own errors name a line of source, or the whole network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

MANY = 2**20  # rows: a trace that knows of fewer holds for these alone


def layer_of(error: BaseException, network: nn.Module) -> str:
    """Return the layer of a network in which torch's tracer or converter failed, for a message.

    The tracer runs the network's Python, so the traceback passes through the layers; the converter holds a node,
    which knows its layers. The innermost layer counts.

    Args:
        error: what was raised, with its causes.
        network: what was traced.

    Returns:
        ``layer 'blocks.1' (Attention)``; the network's class where torch names no layer in it.
    """
    names = {id(module.__dict__): name for name, module in network.named_modules()}  # the tracer wraps modules
    found = ""
    cause: BaseException | None = error
    while cause is not None and not found:
        traceback = cause.__traceback__
        while traceback is not None:
            variables = traceback.tb_frame.f_locals
            module, node = variables.get("self"), variables.get("node")
            if isinstance(module, nn.Module):
                found = names.get(id(module.__dict__), found)
            if isinstance(node, torch.fx.Node):
                found = next((name for name in _layers_of(node) if name in names.values()), found)
            traceback = traceback.tb_next
        cause = cause.__cause__ or cause.__context__
    return shown(network, found)


def layer_that_fixes_rows(network: nn.Module, trace: Callable[[], object]) -> str:
    """Return the layer that makes a trace hold for some numbers of rows only, for a message.

    Args:
        network: what is traced; its first input has the rows as its first dimension.
        trace: runs the tracer once more.
    """
    inside: list[tuple[str, Any]] = []  # layers entered and not left, with the size that their rows have
    found: list[str] = []

    def fixed() -> bool:
        return bool(inside) and _limited(inside[0][1])

    def enter(name: str, inputs: tuple[Any, ...]) -> None:
        if not inside and inputs and isinstance(inputs[0], Tensor):
            inside.append((name, inputs[0].shape[0]))
        elif inside:
            inside.append((name, None))
            if not found and fixed():
                found.append(inside[-2][0])

    def leave(name: str) -> None:
        if not found and fixed():
            found.append(name)
        if inside:
            inside.pop()

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _, inputs, name=name: enter(name, inputs)))
        handles.append(module.register_forward_hook(lambda *_, name=name: leave(name)))
    try:
        with suppress(Exception):  # what is wrong is known; this is the search for its place
            trace()
    finally:
        for handle in handles:
            handle.remove()
    return shown(network, found[0] if found else "")


def shown(network: nn.Module, name: str) -> str:
    """Return how a message names a layer; the empty name is the network's own."""
    kind = type(network.get_submodule(name)).__name__
    return f"layer {name!r} ({kind})" if name else kind


def _layers_of(node: torch.fx.Node) -> Iterator[str]:
    """Yield the names of the layers that a node of a traced wrapper came from, the innermost first."""
    for name, _ in reversed(list(node.meta.get("nn_module_stack", {}).values())):
        yield name.removeprefix("network").removeprefix(".")


def _limited(rows: int | torch.SymInt) -> bool:
    """Tell whether a trace has come to hold for some numbers of rows only, of which this is the size it knows."""
    return isinstance(rows, int) or statically_known_true(rows > 2) or statically_known_true(rows < MANY)
