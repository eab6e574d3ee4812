"""Weight normalization and orthogonality, the baselines that normalization papers compare with.

ONI        W = (V V^T + eps I)^(-1/2) V, by Newton's iteration     Huang et al. 2020
OCNN       || Conv(K, K) - I ||^2, a penalty                       Wang et al. 2020
spectral   W = V / sigma_max(V), torch's own                       Miyato et al. 2018
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

from augserve.errors import ConfigurationError, InputError, unknown_choice

Form = Literal["auto", "row", "column"]

_OPTIONS = {"spectral": ("n_power_iterations", "eps"), "oni": ("num_steps", "form", "eps")}
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def oni(weight: Tensor, num_steps: int = 5, *, form: Form = "auto", eps: float = 1e-5) -> Tensor:
    """Orthogonalize a weight by Newton's iteration: the more steps, the nearer to orthogonal.

    y = B_T V / sqrt(m),  B_0 = I,  B_{t+1} = (3 B_t - B_t^3 S) / 2,
    S = (V V^T + eps I) / m,  m = ||V V^T + eps I||_F;  row form: V is the weight (n, d) less each row's mean.

    The column form is the same on the transpose (d, n), not centered: columns of centered rows are dependent.
    No singular value exceeds 1; a direction of singular value s in V tends to s / sqrt(s^2 + eps).

    Args:
        weight: (n, ...), floating point, taken as the matrix (n, d); float16 and bfloat16 compute in float32.
        num_steps: T, at least 1.
        form: "row" for orthonormal rows (needs n < d), "column" for columns (n >= d); "auto": row where n <= d.
        eps: absolute, positive; keeps a weight of deficient rank, even zero, finite.

    Returns:
        The shape and dtype of `weight`; differentiable.

    Raises:
        ConfigurationError: an unknown form, num_steps below 1, or eps not positive.
        InputError: a weight of fewer than two dimensions, or not of floating point.

    Reference: Huang et al. 2020, "Controllable orthogonalization in training DNNs".

    Example:
        >>> y = oni(torch.randn(4, 3, 3, 3), num_steps=12).flatten(1)
        >>> torch.allclose(y @ y.T, torch.eye(4), atol=1e-3)
        True
    """
    _check_options({"num_steps": num_steps, "form": form, "eps": eps})
    with _full_precision(weight, weight.ndim >= 2, "two or more dimensions") as wide:
        v = wide.flatten(1)
        if form == "row" or (form == "auto" and v.shape[0] <= v.shape[1]):
            y = _orthogonal_rows(v - v.mean(dim=1, keepdim=True), num_steps, eps)
        else:
            y = _orthogonal_rows(v.T, num_steps, eps).T
    return y.to(weight.dtype).reshape(weight.shape)


class ONI(nn.Module):
    """`oni` with its options, as a parametrization for torch.nn.utils.parametrize.

    Example:
        >>> layer = register_parametrization(nn.Linear(9, 4), "weight", ONI(num_steps=7))
        >>> layer(torch.ones(2, 9)).shape
        torch.Size([2, 4])
    """

    def __init__(self, num_steps: int = 5, form: Form = "auto", eps: float = 1e-5) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"num_steps": num_steps, "form": form, "eps": eps}
        _check_options(self.options)

    def forward(self, weight: Tensor) -> Tensor:
        """Return oni(weight)."""
        return oni(weight, **self.options)

    def extra_repr(self) -> str:
        """Return the options."""
        return ", ".join(f"{name}={value}" for name, value in self.options.items())


def ocnn_penalty(
    weight: Tensor,
    stride: int | tuple[int, int] = 1,
    *,
    groups: int = 1,
    form: Form = "auto",
    padding: int | None = None,
    squared: bool = True,
) -> Tensor:
    """Return how far a 2d convolution is from an orthogonal linear map, boundaries aside; zero if it is one.

    || conv2d(K, K, stride=S, padding=P) - I ||_F^2,  P = floor((k - 1) / S) S,  I the identity at the center.

    The column form exchanges inputs and outputs: the S x S phases of an input become inputs of their own, and the
    stride 1. The squares of the two forms differ by a constant, M - N S^2 a group (S at most k).

    Args:
        weight: K (M, N / groups, k, k'), floating point; float16 and bfloat16 compute in float32.
        stride: S, of the convolution.
        groups: of the convolution; each is a map of its own, their squares are summed.
        form: "row": outputs orthonormal, "column": inputs; "auto": row where it can be zero (M <= N S^2 a group).
        padding: another P, row form only. I stands at index size // 2: the shift zero if P is a multiple of S.
        squared: False for the norm instead of its square.

    Returns:
        A scalar, float32 or wider; differentiable.

    Raises:
        ConfigurationError: an unknown form, impossible stride, groups or padding, or padding without form="row".
        InputError: a weight that is not floating point of four dimensions.

    Reference: Wang et al. 2020, "Orthogonal convolutional neural networks".

    Example:
        >>> ocnn_penalty(torch.eye(4).reshape(4, 4, 1, 1)).item()
        0.0
    """
    strides = (stride, stride) if isinstance(stride, int) else stride
    _check_options({"form": form, "stride": min(strides), "groups": groups})
    if padding is not None and (padding < 0 or form != "row"):
        raise ConfigurationError(f"padding needs form='row' and at least 0; got form={form!r}, padding={padding}")
    with _full_precision(weight, weight.ndim == 4, "four dimensions") as wide:
        if len(wide) % groups:
            raise ConfigurationError(f"groups must divide the {len(wide)} output channels; got {groups}")
        kernel = wide.reshape(groups, -1, *wide.shape[1:])
        phases = [min(s, k) for s, k in zip(strides, kernel.shape[3:], strict=True)]  # more than k skips inputs
        if form == "column" or (form == "auto" and kernel.shape[1] > kernel.shape[2] * math.prod(phases)):
            kernel, strides = _exchanged(kernel, *phases), (1, 1)
        rows, size = kernel.transpose(0, 1).flatten(1, 2), kernel.shape[3:]
        pads = [(k - 1) // s * s if padding is None else padding for k, s in zip(size, strides, strict=True)]
        gram: Tensor = F.conv2d(rows, kernel.flatten(0, 1), stride=strides, padding=pads, groups=groups)
        identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device).repeat(1, groups)
        gram[:, :, gram.shape[2] // 2, gram.shape[3] // 2] -= identity
        return gram.square().sum() if squared else torch.linalg.vector_norm(gram)


def ocnn_penalty_of(module: nn.Module, *, form: Form = "auto", squared: bool = True) -> Tensor:
    """Return the sum of `ocnn_penalty` over the nn.Conv2d layers, each with its stride, groups and dilation.

    A dilation D spreads the taps, which acts as the stride S / gcd(S, D). A parametrized weight counts as used.

    Raises:
        ConfigurationError: no nn.Conv2d in `module`, or an unknown form.

    Example:
        >>> loss = 0.1 * ocnn_penalty_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))
        >>> loss.backward()
    """
    penalties = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            height, width = (s // math.gcd(s, d) for s, d in zip(layer.stride, layer.dilation, strict=True))
            own: dict[str, Any] = {"groups": layer.groups, "form": form, "squared": squared}
            penalties.append(ocnn_penalty(layer.weight, (height, width), **own))
    if not penalties:
        raise ConfigurationError("found no nn.Conv2d to penalize")
    return torch.stack(penalties).sum()


def normalize_weights(
    module: nn.Module, kind: Literal["spectral", "oni"], *, exclude: Collection[str] = (), **options: Any
) -> tuple[str, ...]:
    """Parametrize the weight of every nn.Conv1d, Conv2d, Conv3d and Linear by its normalized value, in place.

    spectral: W = V / sigma_max(V), by power iteration in training;  oni: W = oni(V), anew at every use.

    Args:
        module: any network, or such a layer; an optimizer that holds its parameters goes on.
        kind: "spectral" or "oni".
        exclude: names of layers to leave as they are.
        **options: spectral: n_power_iterations (1), eps (1e-12). oni: num_steps (5), form ("auto"), eps (1e-5).

    Returns:
        The names of the layers, as in module.named_modules().

    Raises:
        ConfigurationError: an unknown kind or option, a value that cannot be, nothing to normalize, or a layer,
            named, whose weight is parametrized already or has no shape yet; nothing is changed.

    Reference: Miyato et al. 2018, "Spectral normalization for generative adversarial networks"; Huang et al. 2020.

    Example:
        >>> normalize_weights(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), "oni", num_steps=7)
        ('0',)
    """
    if kind not in _OPTIONS:
        raise unknown_choice("weight normalization", kind, _OPTIONS)
    for option in options:
        if option not in _OPTIONS[kind]:
            raise unknown_choice(f"option of {kind!r}", option, _OPTIONS[kind])
    _check_options(options)
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _LAYERS)}
    unknown = [exclude] if isinstance(exclude, str) else [name for name in exclude if name not in layers]
    if unknown:
        raise ConfigurationError(f"expected exclude as names out of {', '.join(layers)}; got {unknown[0]!r}")
    layers = {name: layer for name, layer in layers.items() if name not in exclude}
    if not layers:
        raise ConfigurationError("found no nn.Conv1d, Conv2d, Conv3d or Linear to normalize")
    for name, layer in layers.items():
        if not has_plain_weight(layer):
            raise ConfigurationError(f"layer {name!r}: its weight is parametrized already, or not initialized yet")
    for layer in layers.values():
        if kind == "spectral":
            spectral_norm(layer, "weight", **options)
        else:
            register_parametrization(layer, "weight", ONI(**options))
    return tuple(layers)


def has_plain_weight(layer: nn.Module) -> bool:
    """Return whether a layer's weight is a parameter as it is: neither computed by a parametrization nor lazy."""
    return type(dict(layer.named_parameters(recurse=False)).get("weight")) is nn.Parameter


def _orthogonal_rows(v: Tensor, num_steps: int, eps: float) -> Tensor:
    # Y = B [V, sqrt(eps) I] / sqrt(m) has Y Y^T = B S B, so that Y <- (3 Y - Y Y^T Y) / 2 is the iteration of B.
    # It corrects its own rounding, where B^3 S diverges within a dozen steps on an ill-conditioned V.
    y: Tensor = torch.cat([v, math.sqrt(eps) * torch.eye(len(v), dtype=v.dtype, device=v.device)], dim=1)
    y = y / torch.linalg.matrix_norm(y @ y.T).sqrt()
    for _ in range(num_steps):
        y = 1.5 * y - 0.5 * (y @ y.T @ y)
    return y[:, : v.shape[1]]


def _exchanged(kernel: Tensor, r: int, s: int) -> Tensor:
    """Return (G, m, n, k, k') of stride (r, s) as (G, n r s, m, h, w), the transpose, of stride 1."""
    padded: Tensor = F.pad(kernel, (0, -kernel.shape[4] % s, 0, -kernel.shape[3] % r))
    G, m, n, height, width = padded.shape
    split: Tensor = padded.reshape(G, m, n, height // r, r, width // s, s).permute(0, 2, 4, 6, 1, 3, 5)
    return split.reshape(G, n * r * s, m, height // r, width // s)


@contextmanager
def _full_precision(weight: Tensor, fits: bool, dimensions: str) -> Iterator[Tensor]:
    """Give the weight in float32 or wider, without autocast, which would compute its products in half precision."""
    if not (fits and weight.is_floating_point()):
        came = f"{weight.dtype} of shape {tuple(weight.shape)}"
        raise InputError(f"expected a floating point weight of {dimensions}; got {came}")
    kind = weight.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if mixed else nullcontext():
        yield weight.to(torch.promote_types(weight.dtype, torch.float32))


def _check_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name == "form" and value not in ("auto", "row", "column"):
            raise unknown_choice("form", value, ("auto", "row", "column"))
        if name == "eps" and not value > 0:
            raise ConfigurationError(f"eps must be positive; got {value}")
        if name not in ("form", "eps") and value < 1:
            raise ConfigurationError(f"{name} must be at least 1; got {value}")
