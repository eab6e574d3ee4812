"""Tensors of a network that are neither parameters nor buffers: into the file as what they hold, or what is wrong.

torch lifts a tensor that a layer keeps into the graph. A tensor's `.data` it loses: of that, its tracer holds the
shape alone. `.detach()` gives the same numbers, and the tracer knows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from augserve.export.tracing.culprit import shown

_CHANGED = re.compile(r"Constant (\S+) is mutated in the forward method")
_GET_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_NUMBERS = "Cannot access data pointer of Tensor"


class DataIsDetached(TorchFunctionMode):
    """While it is entered, the `.data` of a tensor is its `.detach()`."""

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func == _GET_DATA:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


def constant_at_fault(reason: str, layer: str, network: nn.Module) -> str | None:
    """Return the message about a tensor that torch could not take for a constant, or None if it is about others.

    Args:
        reason: torch's own words.
        layer: in which it failed, for a message.
        network: what was traced, in a wrapper that calls it `network`.
    """
    changed = _CHANGED.search(reason)
    if changed is not None:
        *path, name = changed[1].removeprefix("network.").split(".")
        layers = dict(network.named_modules())
        owner = next(".".join(path[:k]) for k in range(len(path), -1, -1) if ".".join(path[:k]) in layers)
        what = f"its tensor {name!r}" if hasattr(layers[owner], name) else "a tensor that it keeps"
        return (
            f"{shown(network, owner)} changes {what} in forward, and a file keeps nothing between runs: make "
            "another tensor there (k * 2 instead of k.mul_(2)), or change it before the export"
        )
    if _NUMBERS in reason:
        return (
            f"{layer} reads the numbers of a tensor in forward, as NumPy does, and torch traces operations on "
            "tensors alone: write it in torch, or make the tensor in __init__ and keep it"
        )
    return None
