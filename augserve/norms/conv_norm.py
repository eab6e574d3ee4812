"""ConvNorm: a convolution whose every output channel is divided by its kernel's spectrum.

    v_k = (sum_j |FFT(a_kj)|^2)^(-1/2),    y_k = iFFT(v_k FFT(sum_j a_kj * x_j))

a_kj is the kernel from input channel j to output channel k; v is that of the current weight, also in eval, and a
constant in backward. A depthwise kernel r may follow. Source: Liu et al. 2021, "Convolutional Normalization".
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augserve.errors import ConfigurationError, InputError, unknown_choice
from augserve.norms.reduction import require_floating
from augserve.norms.tracing import tracer

Pair = int | tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
AffinePosition = Literal["after_crop", "before_crop"]
BiasPosition = Literal["after", "before"]


class ConvNorm2d(nn.Conv2d):
    """A convolution of images with convolutional normalization: nn.Conv2d with v and r.

    y = r * crop(iFFT(v FFT(a * x))) + b_r + bias,    v_k = (sum_j |FFT(a_kj)|^2)^(-1/2)

    Args:
        in_channels: Ci.
        out_channels: Co.
        kernel_size: of a; one number or (height, width), as are stride, padding and dilation.
        stride: distance between outputs; they are picked after the normalization.
        padding: positions added on each side, or "same" or "valid".
        dilation: distance between the taps of a.
        groups: blocks of channels that are convolved apart.
        bias: learn a bias (Co,).
        padding_mode: "zeros"; "circular": the input is a torus; "reflect", "replicate": it is extended first.
        eps: |FFT(a_k)| counts as at least eps times its largest value; in (0, 1].
        affine: learn r (affine_weight, (Co, 1, *kernel_size), 1 at kernel_size // 2) and b_r (affine_bias, (Co,)).
        affine_position: "after_crop": r sees the output; "before_crop": all that was normalized.
        bias_position: "after": added last; "before": added to a * x, as in the published code.
        device: of the parameters.
        dtype: of the parameters, floating-point.

    Returns:
        y for x (N, Ci, H, W) or (Ci, H, W), with the shape, dtype and memory format of nn.Conv2d's output.

    Raises:
        ConfigurationError: an option that cannot be, or an unknown choice.
        InputError: another number of dimensions or channels, or an input smaller than the kernel.

    Reference: Liu et al. 2021, "Convolutional Normalization".

    Example:
        >>> layer = ConvNorm2d(3, 8, kernel_size=3, stride=2, padding=1)
        >>> layer(torch.randn(4, 3, 32, 32)).shape
        torch.Size([4, 8, 16, 16])
    """

    affine_weight: nn.Parameter | None
    affine_bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        padding_mode: PaddingMode = "zeros",
        eps: float = 1e-8,
        affine: bool = True,
        affine_position: AffinePosition = "after_crop",
        bias_position: BiasPosition = "after",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or count < 1 or count % groups:
                raise ConfigurationError(f"{name} must be a positive multiple of groups={groups}; got {count}")
        kernel_size, stride = _pair("kernel_size", kernel_size, 1), _pair("stride", stride, 1)
        dilation = _pair("dilation", dilation, 1)
        if not isinstance(padding, str):
            padding = _pair("padding", padding, 0)
        elif padding not in ("same", "valid"):
            raise unknown_choice("padding", padding, ("same", "valid", "a number", "two numbers"))
        elif padding == "same" and stride != (1, 1):
            raise ConfigurationError(f"padding='same' needs stride 1; got {stride}; give padding as a number")
        choices = {"padding_mode": PaddingMode, "affine_position": AffinePosition, "bias_position": BiasPosition}
        given = (padding_mode, affine_position, bias_position)
        for (what, known), came in zip(choices.items(), given, strict=True):
            if came not in get_args(known):
                raise unknown_choice(what, came, get_args(known))
        if not 0 < eps <= 1:
            raise ConfigurationError(f"eps must lie in (0, 1]; got {eps}; the default is 1e-8")
        rest = (padding_mode, device, dtype)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, *rest)
        self.eps, self.affine = float(eps), affine
        self.affine_position, self.bias_position = affine_position, bias_position
        r = nn.init.dirac_(torch.empty(out_channels, 1, *kernel_size, device=device, dtype=dtype), out_channels)
        self.register_parameter("affine_weight", nn.Parameter(r) if affine else None)
        self.register_parameter("affine_bias", nn.Parameter(torch.zeros_like(r[:, 0, 0, 0])) if affine else None)

    def reset_parameters(self) -> None:
        """Draw weight and bias as nn.Conv2d does; set r to the identity and its bias to 0."""
        super().reset_parameters()
        r, shift = getattr(self, "affine_weight", None), getattr(self, "affine_bias", None)
        if r is not None and shift is not None:  # not there yet while nn.Conv2d is set up
            nn.init.dirac_(r, self.out_channels)
            nn.init.zeros_(shift)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve and normalize input (N, Ci, H, W) or (Ci, H, W)."""
        if input.ndim not in (3, 4) or input.shape[-3] != self.in_channels:
            expected = f"(N, C, H, W) or (C, H, W) with C = {self.in_channels}"
            raise InputError(f"expected {expected}; got {tuple(input.shape)}; change the input or in_channels")
        require_floating(input, "ConvNorm2d")
        x = input if input.ndim == 4 else input.unsqueeze(0)
        extended, zeros, size, start, span = self._lengths(x.shape[-2], x.shape[-1])
        if self.padding_mode == "circular":
            x = _window(x, (0, 0), extended)
        elif self.padding_mode != "zeros":
            x = F.pad(x, self._pads(), mode=self.padding_mode)
        if torch.onnx.is_in_onnx_export() and (who := tracer()) is not None:
            lengths = [zeros, size, start, span]
            if (traced := who.conv_norm(self, (input.shape[-2], input.shape[-1]), x, lengths)) is not None:
                return traced if input.ndim == 4 else traced.squeeze(0)
        weight = self.weight  # once: a parametrization may compute it
        bias = self.bias if self.bias_position == "before" else None
        full = F.conv2d(x, weight, bias, 1, zeros, self.dilation, self.groups)
        v = spectral_multiplier(weight, size, self.dilation, self.eps)
        y = filter_by(full, v) if self.kernel_size != (1, 1) else (full * v[:, :1, :1]).to(full.dtype)
        y = self._depthwise(y, self.padding_mode == "circular") if self.affine_position == "before_crop" else y
        y = _window(y, start, span)[..., :: self.stride[0], :: self.stride[1]]
        y = self._depthwise(y) if self.affine_position == "after_crop" else y
        if self.bias is not None and self.bias_position == "after":
            y = y + self.bias.to(y.dtype).view(-1, 1, 1)
        channels_last = full.stride(1) == 1 and not full.is_contiguous()
        y = y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        return y if input.ndim == 4 else y.squeeze(0)

    def multiplier(self, height: int, width: int) -> Tensor:
        """Return v of the current weight for an input of height x width, without gradient.

        v is (Co, Lh, Lw // 2 + 1), float32, or float64 for a float64 weight. Lh is height on a torus, elsewhere
        height + 2 max(e - 1, padding) - e + 1 with e = dilation (kernel_size - 1) + 1; reflections count as height.

        Raises:
            InputError: an input of that size is smaller than the kernel.
        """
        return spectral_multiplier(self.weight, self._lengths(height, width)[2], self.dilation, self.eps)

    def _depthwise(self, y: Tensor, around: bool = False) -> Tensor:
        """Return r * y + b_r in the size of y; beyond y lie zeros, or y again where it is a torus."""
        if self.affine_weight is None:
            return y
        (height, width), (rows, columns) = y.shape[-2:], self.kernel_size
        top, left = rows // 2, columns // 2
        y = _window(y, (-top, -left), (height + rows - 1, width + columns - 1)) if around else y
        y = F.conv2d(y, self.affine_weight, self.affine_bias, 1, 0 if around else (top, left), 1, self.out_channels)
        return y[..., :height, :width]  # an even kernel gives one position more

    def _lengths(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return five lengths, each along height and width, for an input of that size.

        They are: the input's, other than zeros padded; zeros on each side of it; that of the convolution that is
        normalized; where the output begins in it (negative on a torus); the span that the output steps over.
        """
        left, right, top, bottom = self._pads()
        mode, axes = self.padding_mode, []
        for dim, (size, begin, end) in enumerate(((height, top, bottom), (width, left, right))):
            extent = self.dilation[dim] * (self.kernel_size[dim] - 1) + 1
            span = size + begin + end - extent + 1
            if size < 1 or span < 1 or (mode == "reflect" and size <= max(begin, end)):
                raise InputError(
                    f"expected an input that holds the kernel's {extent} positions when padded by {begin} + {end} "
                    f"(reflect: larger than the padding); got {size} in dimension {dim - 2}; use larger inputs"
                )
            added, zeros, start = {
                "zeros": (0, max(extent - 1, begin), max(extent - 1 - begin, 0)),
                "circular": (extent - 1, 0, -begin),
            }.get(mode, (begin + end, extent - 1, extent - 1))
            axes.append((size + added, zeros, size + added + 2 * zeros - extent + 1, start, span))
        return list(zip(*axes, strict=True))

    def _pads(self) -> list[int]:
        """Return the positions added left, right, above and below, as F.pad takes them."""
        if not isinstance(self.padding, str):
            height, width = self.padding
            return [width, width, height, height]
        extents = zip(reversed(self.dilation), reversed(self.kernel_size), strict=True)
        added = [step * (taps - 1) if self.padding == "same" else 0 for step, taps in extents]
        return [side for both in added for side in (both // 2, both - both // 2)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        own = {f"{prefix}affine_weight", f"{prefix}affine_bias"}
        if f"{prefix}weight" in state_dict and own.isdisjoint(state_dict):  # an nn.Conv2d's: r stays as it is
            rest[2][:] = [key for key in rest[2] if key not in own]  # the keys that are reported missing

    def extra_repr(self) -> str:
        """The constructor's arguments, nn.Conv2d's first."""
        own = [f"{name}={getattr(self, name)}" for name in ("eps", "affine", "affine_position", "bias_position")]
        return ", ".join([super().extra_repr(), *own])  # type: ignore[no-untyped-call]


def spectral_multiplier(weight: Tensor, size: tuple[int, ...], dilation: tuple[int, ...], eps: float) -> Tensor:
    """Return v = (sum_j |FFT(a_kj)|^2)^(-1/2), without gradient; 1 for a channel whose kernel is zero.

    Args:
        weight: a (Co, Ci, kh, kw), floating-point.
        size: (Lh, Lw) of the torus; a kernel that is larger wraps around it.
        dilation: distance between taps.
        eps: the amplitude 1 / v is at least eps times its channel's largest.

    Returns:
        v (Co, Lh, Lw // 2 + 1) in float32 or better.
    """
    kernel = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    largest = kernel.abs().amax(dim=(1, 2, 3), keepdim=True)
    largest = torch.where(largest == 0, 1.0, largest)
    kernel = kernel / largest  # squares of its spectrum neither under- nor overflow
    for dim in (-2, -1):
        shape = list(kernel.shape)
        taps = torch.arange(shape[dim], device=kernel.device) * dilation[dim]
        shape[dim] = size[dim] if shape[dim] > 1 else 1  # along an axis with one tap the spectrum is flat
        kernel = kernel.new_zeros(shape).index_add(dim, taps % shape[dim], kernel)
    amplitude = torch.view_as_real(torch.fft.rfft2(kernel)).square().sum(dim=(1, -1)).sqrt()
    peak = amplitude.amax(dim=(1, 2), keepdim=True)
    amplitude = torch.maximum(amplitude, torch.where(peak == 0, 1.0, eps * peak))
    v = (amplitude.reciprocal() / largest.squeeze(1)).clamp(max=torch.finfo(kernel.dtype).max)
    return v.expand(-1, size[0], size[1] // 2 + 1)


def filter_by(x: Tensor, multiplier: Tensor) -> Tensor:
    """Return iFFT(v FFT(x)) of x (N, C, H, W) in its dtype, computed in that of v (C, H, W // 2 + 1)."""
    if x.numel() == 0:  # FFT libraries refuse an empty batch
        return x
    y: Tensor = torch.fft.irfft2(torch.fft.rfft2(x.to(multiplier.dtype)) * multiplier, s=x.shape[-2:])
    return y.to(x.dtype)


def _window(x: Tensor, begin: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Return `size` positions from `begin` on of x (N, C, H, W), which repeats beyond its border."""
    for dim, first, length in zip((-2, -1), begin, size, strict=True):
        x = x.roll(-first, dim) if first < 0 else x
        missing = max(first, 0) + length - x.shape[dim]
        if missing > 0:
            x = torch.cat([x] * (1 - -missing // x.shape[dim]), dim)
        x = x.narrow(dim, max(first, 0), length)
    return x


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
        raise ConfigurationError(f"{name} must be one or two whole numbers from {least} up; got {value!r}")
    return pair[0], pair[1]
