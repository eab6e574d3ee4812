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
from augserve.norms.functional import aug_norm, center_and_variance
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
        weight, bias = (None if v is None else along_channels(v, x) for v in (self.weight, self.bias))
        phi = along_channels(self.phi, x) if isinstance(self.phi, Tensor) else self.phi
        return _normalize(self, x, tuple(range(2, x.ndim)), phi, weight, bias)

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
        values = x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x
        y = _normalize(self, values, tuple(range(x.ndim - last, x.ndim)), self.phi)
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
        grouped = x.reshape(x.shape[0], self.num_groups, self.num_channels // self.num_groups, *x.shape[2:])
        phi = self.phi
        phi = phi.view(1, -1, *(1,) * (x.ndim - 1)) if isinstance(phi, Tensor) else phi
        values = grouped.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else grouped
        y = _normalize(self, values, tuple(range(2, grouped.ndim)), phi).flatten(1, 2)
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
    x: Tensor,
    dims: tuple[int, ...],
    phi: float | Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    require_floating(x, type(layer).__name__)
    if x.numel() == 0:
        return _elementwise(x * 1, weight, bias)
    if math.prod([x.shape[d] for d in dims]) == 1:
        raise StatisticsError(
            f"{type(layer).__name__} expected more than 1 value to normalize together; got shape {tuple(x.shape)}"
        )
    if not torch.compiler.is_compiling():
        return aug_norm(x, dims, phi, layer.eps, weight=weight, bias=bias)[0]
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    mu, var = center_and_variance(values, dims, phi)
    return _elementwise((values - mu) * torch.rsqrt(var + layer.eps), weight, bias).to(x.dtype)


def _elementwise(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return gamma y + beta in the dtype of y."""
    result = y if weight is None else y * weight
    return (result if bias is None else result + bias).to(y.dtype)


def _repr(layer: HasExponent, *sizes: object, **options: object) -> str:
    shown = {**layer._exponent_options(), **options}
    return ", ".join([*map(str, sizes), *(f"{name}={value}" for name, value in shown.items())])
