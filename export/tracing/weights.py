"""Weights that a parametrization computes (`torch.nn.utils.parametrize`) go into files as what it makes of them.

    file: W = f(V)    instead of V and the nodes of f

f is a product of matrices for spectral_norm, dozens for ONI. Runtimes would compute W anew whenever they load the
file, and no norm could be folded into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize


@contextmanager
def computed_weights(model: nn.Module) -> Iterator[None]:
    """For the length of a `with`, make parametrized tensors of a network plain parameters of the same values.

    Args:
        model: in eval mode. Afterwards it is as it was.

    Example:
        >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
        >>> with computed_weights(layer):
        ...     isinstance(layer.weight, nn.Parameter)
        True
    """
    plain: list[tuple[nn.Module, type[nn.Module], list[str]]] = []
    try:
        for module in list(model.modules()):
            if parametrize.is_parametrized(module):
                with torch.no_grad():
                    values = {name: getattr(module, name).clone() for name in _parametrizations(module)}
                plain.append((module, type(module), list(values)))
                # The class that parametrize made has a property of each name, which hides parameters.
                module.__class__ = parametrize.type_before_parametrizations(module)
                for name, value in values.items():
                    module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        yield
    finally:
        for module, kind, names in plain:
            for name in names:
                delattr(module, name)
            module.__class__ = kind


def _parametrizations(module: nn.Module) -> list[str]:
    """Return the names of the tensors that are computed."""
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)  # noqa: S101 - that is what is_parametrized asks
    return list(parametrizations)
