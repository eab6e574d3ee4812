"""Names that torch does not promise to keep: all uses of them, and what happens where torch does not have one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_tracer: Callable[[], object] = getattr(torch._C, "_get_tracing_state", lambda: True)

_transforms: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def transforms_active() -> bool:
    """Return whether torch.func transforms what runs.

    Where torch cannot tell: yes, and every norm is computed by its definition, of operations that transforms know.
    """
    return _transforms()


def watched() -> bool:
    """Return whether a dispatch mode, a transform or a tracer sees torch's operations.

    Where torch cannot tell: yes, and kernels are called as operators of torch alone, never past its dispatch.
    """
    return _dispatch_modes() != 0 or _transforms() or _tracer() is not None


def direct_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return `function.apply` without its look for transforms, for whoever has seen that there are none.

    Where torch builds it otherwise: `function.apply` as it is, which takes longer.
    """
    return getattr(super(torch.autograd.Function, function), "apply", function.apply)


def held(module: nn.Module) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """Return the parameters and the buffers of a module where it keeps them: on small data attributes are seen.

    Where torch keeps them elsewhere: what `named_parameters` and `named_buffers` give, None missing.
    """
    if hasattr(module, "_parameters") and hasattr(module, "_buffers"):
        return module._parameters, module._buffers  # type: ignore[return-value]
    return dict(module.named_parameters(recurse=False)), dict(module.named_buffers(recurse=False))


def _bases(module: Any, name: str, *public: type[Any]) -> tuple[type[Any], ...]:
    """Return torch's base class of some layers; where there is none, the layers themselves."""
    found = getattr(module, name, None)
    return public if found is None else (found,)


BATCH_NORMS = _bases(
    nn.modules.batchnorm, "_BatchNorm", nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
)
INSTANCE_NORMS = _bases(
    nn.modules.instancenorm, "_InstanceNorm", nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
)

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_is_full_backward_hook",
)


def take_hooks(new: nn.Module, old: nn.Module) -> None:
    """Give `new` the hooks of `old`, whose handles go on working. What torch does not have is left out."""
    for name in _HOOKS:
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))
    for hook in getattr(new, "_load_state_dict_pre_hooks", {}).values():
        if getattr(hook, "with_module", False):  # it holds its layer
            vars(hook)["module"] = weakref.ref(new)
