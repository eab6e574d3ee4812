"""AugNorm over other sets of values than a batch's: of each image and channel, of each sample, of channel groups.

    y = gamma (x - mu) / sqrt(mean((x - mu)^2) + eps) + beta,    mu = argmin_y sum |x - y|^phi

Each row is normalized by itself, so there are no running statistics, no modes and no statistics groups. phi = 2
is torch's InstanceNorm, LayerNorm and GroupNorm. Source: AugNorm; names of the torch.nn layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from augserve.errors import ConfigurationError, InputError, StatisticsError
from augserve.norms.exponent import HasExponent
from augserve.norms.function import make_spec, normalize, takes
from augserve.norms.kernels.dispatch import CHANNELS_LAST
from augserve.norms.kernels.spec import AUG
from augserve.norms.median.operator import center_and_variance
from augserve.norms.reduction import along_channels, require_floating


class OwnRows(HasExponent):
    """The base of the layers that normalize each row by itself; not used by itself."""

    weight: Tensor | None
    bias: Tensor | None

    def reset_parameters(self) -> None:
        """Set gamma to 1, beta to 0, a learned phi to its beginning."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self._reset_exponent()


class AugInstanceNorm(OwnRows):
    """AugNorm of each channel of each row of (N, C, *spatial), of any rank; see `AugInstanceNorm2d`."""

    ndims: tuple[int, ...] = (3, 4, 5)

    def __init__(
        self,
        num_features: int,
        phi: float = 1.5,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        learn_phi: bool = False,
        phi_min: float = 1.1,
        phi_max: float = 3.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        _affine_parameters(self, (num_features,), affine, affine, device, dtype)
        self._set_exponent(phi, learn_phi, phi_min, phi_max, num_features, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *spatial); the shape and dtype of the result are those of x."""
        if x.ndim not in self.ndims or x.shape[1] != self.num_features:
            kinds = " or ".join(f"{n}D" for n in self.ndims)
            raise InputError(
                f"{type(self).__name__} expected a {kinds} input with {self.num_features} channels in dimension 1; "
                f"got shape {tuple(x.shape)}"
            )
        sets = x.reshape(x.shape[0] * x.shape[1], math.prod(x.shape[2:]))
        return _laid_as(x, _normalize(self, sets, self.weight, self.bias).reshape(x.shape))

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return _repr(self, self.num_features, eps=self.eps, affine=self.affine)


class AugInstanceNorm1d(AugInstanceNorm):
    """AugNorm of each channel of each row of (N, C, L), over L; see `AugInstanceNorm2d`."""

    ndims = (3,)


class AugInstanceNorm2d(AugInstanceNorm):
    """AugNorm of each channel of each image of (N, C, H, W), over H and W.

    mu = argmin_y sum |x - y|^phi over H and W; y = gamma (x - mu) / sqrt(mean((x - mu)^2) + eps) + beta.

    Args:
        num_features: C.
        phi: exponent in [1, inf]: 1 median, 2 mean (then it is InstanceNorm2d), inf midrange.
        eps: added to the variance.
        affine: learn gamma (weight) and beta (bias), each (C,).
        learn_phi: learn an exponent for each channel, which begins at phi.
        phi_min: lower end of a learned phi, above 1.
        phi_max: upper end of a learned phi.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigurationError: phi outside [1, inf], or learned from outside (phi_min, phi_max).
        InputError: another number of dimensions or channels.
        StatisticsError: one value per channel.

    Reference: AugNorm.

    Example:
        >>> layer = AugInstanceNorm2d(3, phi=1.5)
        >>> layer(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    ndims = (4,)


class AugInstanceNorm3d(AugInstanceNorm):
    """AugNorm of each channel of each volume of (N, C, D, H, W); see `AugInstanceNorm2d`."""

    ndims = (5,)


class AugLayerNorm(OwnRows):
    """AugNorm over the last dimensions of each sample.

    mu = argmin_y sum |x - y|^phi over normalized_shape; y = gamma (x - mu) / sqrt(mean((x - mu)^2) + eps) + beta.

    Args:
        normalized_shape: sizes of the last dimensions, which are normalized together.
        phi: exponent in [1, inf]; 2 is LayerNorm.
        eps: added to the variance.
        elementwise_affine: learn gamma (weight) and beta (bias), each of normalized_shape.
        bias: whether there is a beta.
        learn_phi: learn one exponent, which begins at phi.
        phi_min: lower end of a learned phi, above 1.
        phi_max: upper end of a learned phi.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigurationError: phi outside [1, inf], or learned from outside (phi_min, phi_max).
        InputError: an input that does not end in normalized_shape.

    Reference: AugNorm.

    Example:
        >>> layer = AugLayerNorm(16, phi=1.5)
        >>> layer(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        phi: float = 1.5,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        learn_phi: bool = False,
        phi_min: float = 1.1,
        phi_max: float = 3.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape, self.eps, self.elementwise_affine = shape, eps, elementwise_affine
        _affine_parameters(self, shape, elementwise_affine, elementwise_affine and bias, device, dtype)
        self._set_exponent(phi, learn_phi, phi_min, phi_max, 1, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., *normalized_shape); the shape and dtype of the result are those of x."""
        last = len(self.normalized_shape)
        if tuple(x.shape[x.ndim - last :]) != self.normalized_shape:
            raise InputError(f"AugLayerNorm expected (..., {self.normalized_shape}); got shape {tuple(x.shape)}")
        sets = _wide(x).reshape(math.prod(x.shape[: x.ndim - last]), math.prod(self.normalized_shape))
        y = _laid_as(x, _normalize(self, sets).reshape(x.shape))
        return _elementwise(y, self.weight, self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        options = {"elementwise_affine": self.elementwise_affine, "bias": self.bias is not None}
        return _repr(self, self.normalized_shape, eps=self.eps, **options)


class AugGroupNorm(OwnRows):
    """AugNorm of groups of channels of each row of (N, C, *spatial).

    mu = argmin_y sum |x - y|^phi over the C / num_groups channels of a group and all positions;
    y = gamma (x - mu) / sqrt(mean((x - mu)^2) + eps) + beta.

    Args:
        num_groups: groups that the channels are cut into, in order.
        num_channels: C.
        phi: exponent in [1, inf]; 2 is GroupNorm.
        eps: added to the variance.
        affine: learn gamma (weight) and beta (bias), each (C,).
        learn_phi: learn an exponent for each group, which begins at phi.
        phi_min: lower end of a learned phi, above 1.
        phi_max: upper end of a learned phi.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigurationError: channels that the groups do not divide, or a phi as in `AugLayerNorm`.
        InputError: another number of channels.

    Reference: AugNorm.

    Example:
        >>> layer = AugGroupNorm(2, 6, phi=1.5)
        >>> layer(torch.randn(4, 6, 8, 8)).shape
        torch.Size([4, 6, 8, 8])
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        phi: float = 1.5,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        learn_phi: bool = False,
        phi_min: float = 1.1,
        phi_max: float = 3.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise ConfigurationError(f"expected num_groups to divide {num_channels} channels; got {num_groups}")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        _affine_parameters(self, (num_channels,), affine, affine, device, dtype)
        self._set_exponent(phi, learn_phi, phi_min, phi_max, num_groups, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *spatial); the shape and dtype of the result are those of x."""
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise InputError(
                f"AugGroupNorm expected (N, {self.num_channels}, *spatial); got shape {tuple(x.shape)}"
            )
        count, channels = x.shape[0] * self.num_groups, self.num_channels // self.num_groups
        sets = _wide(x).reshape(count, channels * math.prod(x.shape[2:]))
        y = _laid_as(x, _normalize(self, sets).reshape(x.shape))
        weight, bias = (None if v is None else along_channels(v, x) for v in (self.weight, self.bias))
        return _elementwise(y, weight, bias).to(x.dtype)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{self.num_groups}, " + _repr(self, self.num_channels, eps=self.eps, affine=self.affine)


def _affine_parameters(
    layer: nn.Module,
    shape: tuple[int, ...],
    weight: bool,
    bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    ones, zeros = torch.ones(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
    layer.register_parameter("weight", nn.Parameter(ones) if weight else None)
    layer.register_parameter("bias", nn.Parameter(zeros) if bias else None)


def _normalize(
    layer: AugInstanceNorm | AugLayerNorm | AugGroupNorm,
    sets: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Normalize each of the sets (R, m); weight, bias and exponents, where they are given, repeat over them."""
    require_floating(sets, type(layer).__name__)
    count, size = sets.shape
    if sets.numel() == 0:
        return sets * 1
    if size == 1:
        raise StatisticsError(
            f"{type(layer).__name__} expected more than 1 value to normalize together; got sets of shape "
            f"{tuple(sets.shape)}"
        )
    phi = layer.phi
    exponent, each = (1.5, phi) if isinstance(phi, Tensor) else (phi, None)
    weight, bias, exponents = (None if v is None else v.repeat(count // len(v)) for v in (weight, bias, each))
    channels, spec = sets.unsqueeze(0), make_spec(AUG, exponent, layer.eps)
    if takes(channels, spec):
        return normalize(channels, weight, bias, exponents, None, spec)[0].squeeze(0)
    values = _wide(sets)
    mu, var = center_and_variance(values, (1,), exponent if exponents is None else exponents[:, None])
    y = (values - mu) * torch.rsqrt(var + layer.eps)
    weight, bias = (None if v is None else v[:, None] for v in (weight, bias))
    return _elementwise(y, weight, bias).to(sets.dtype)


def _wide(x: Tensor) -> Tensor:
    """Return floating point values as float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def _laid_as(x: Tensor, y: Tensor) -> Tensor:
    """Return y, of the shape of x, in its memory format."""
    order = CHANNELS_LAST.get(x.ndim)
    if order is None or x.is_contiguous() or not x.is_contiguous(memory_format=order):
        return y
    return y.contiguous(memory_format=order)


def _elementwise(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return gamma y + beta in the dtype of y."""
    result = y if weight is None else y * weight
    return (result if bias is None else result + bias).to(y.dtype)


def _repr(layer: HasExponent, *sizes: object, **options: object) -> str:
    shown = {**layer._exponent_options(), **options}
    return ", ".join([*map(str, sizes), *(f"{name}={value}" for name, value in shown.items())])
