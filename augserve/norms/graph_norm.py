"""Normalization of graphs: GraphNorm, and AugNorm in its graph form.

    s = x - alpha center,    y = gamma s / sqrt(mean(s^2) + eps) + beta,    over the nodes of each graph

with a learned alpha for each channel (`mean_scale`), and the mean, or AugNorm's mu, as center. Each graph is
normalized by itself, so there are no running statistics. Sources: GraphNorm (Cai et al. 2021); AugNorm; the
convention (x, batch, batch_size) and the name mean_scale are PyTorch Geometric's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from augserve.errors import InputError
from augserve.norms.exponent import HasExponent
from augserve.norms.median.operator import SOLVER, median_of_segments
from augserve.norms.reduction import Segments, require_floating


class GraphNorm(nn.Module):
    """GraphNorm of nodes (n, C): around alpha times the mean of each graph.

    s = x - alpha mean; y = gamma s / sqrt(mean(s^2) + eps) + beta, over the nodes of each graph.

    Args:
        in_channels: C.
        eps: added to the variance.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: gamma (C,).
        bias: beta (C,).
        mean_scale: alpha (C,), 1 at the beginning.

    Raises:
        InputError: nodes that are not (n, C), or a `batch` that does not name the graph of each node.

    Reference: Cai et al. 2021, "GraphNorm: a principled approach to accelerating graph neural network training".

    Example:
        >>> layer = GraphNorm(8)
        >>> layer(torch.randn(5, 8), batch=torch.tensor([0, 0, 1, 1, 1])).shape
        torch.Size([5, 8])
    """

    weight: Tensor
    bias: Tensor
    mean_scale: Tensor

    def __init__(
        self,
        in_channels: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.eps = in_channels, eps
        for name in ("weight", "bias", "mean_scale"):
            self.register_parameter(name, nn.Parameter(torch.empty(in_channels, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set gamma and alpha to 1, beta to 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.mean_scale)

    def center(self, x: Tensor, graphs: Segments) -> Tensor:
        """Return the center of each graph, (B, C); x (n, C) in float32 or better."""
        return graphs.mean(x)

    def forward(self, x: Tensor, batch: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        """Normalize the nodes of each graph.

        Args:
            x: (n, C), the nodes of all graphs, in any order.
            batch: int64 (n,), the graph of each node; None: one graph.
            batch_size: B, the number of graphs, of which some may be empty. Where it is given, nothing waits for
                the device; without it, it is the largest entry of `batch` + 1.

        Returns:
            (n, C), the dtype of x.
        """
        if x.ndim != 2 or x.shape[1] != self.in_channels:
            raise InputError(
                f"{type(self).__name__} expected nodes (n, {self.in_channels}); got shape {tuple(x.shape)}"
            )
        require_floating(x, type(self).__name__)
        graphs = _graphs(x, batch, batch_size)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        s = values - graphs.each(self.mean_scale * self.center(values, graphs))
        y = s * graphs.each(torch.rsqrt(graphs.mean(s.square()) + self.eps))
        return (y * self.weight + self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{self.in_channels}, eps={self.eps}"


class AugGraphNorm(HasExponent, GraphNorm):
    """AugNorm of nodes (n, C): around alpha times the generalized median of each graph.

    mu = argmin_y sum |x - y|^phi; s = x - alpha mu; y = gamma s / sqrt(mean(s^2) + eps) + beta, over the nodes of
    each graph. A graph of one node has mu = x.

    Args:
        in_channels: C.
        phi: exponent in [1, inf]; 2 is GraphNorm.
        eps: added to the variance.
        learn_phi: learn an exponent for each channel, which begins at phi.
        phi_min: lower end of a learned phi, above 1.
        phi_max: upper end of a learned phi.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigurationError: phi outside [1, inf], or learned from outside (phi_min, phi_max).
        InputError: as `GraphNorm`.

    Reference: AugNorm, graph form.

    Example:
        >>> layer = AugGraphNorm(8, phi=1.5)
        >>> layer(torch.randn(5, 8), batch=torch.tensor([0, 0, 1, 1, 1]), batch_size=2).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        in_channels: int,
        phi: float = 1.5,
        eps: float = 1e-5,
        *,
        learn_phi: bool = False,
        phi_min: float = 1.1,
        phi_max: float = 3.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, eps, device=device, dtype=dtype)
        self._set_exponent(phi, learn_phi, phi_min, phi_max, in_channels, device, dtype)

    def reset_parameters(self) -> None:
        """Set gamma and alpha to 1, beta to 0, a learned phi to its beginning."""
        super().reset_parameters()
        if hasattr(self, "phi_logit"):  # not yet, while the base is set up
            self._reset_exponent()

    @override
    def center(self, x: Tensor, graphs: Segments) -> Tensor:
        phi = self.phi
        if isinstance(phi, Tensor):
            phi = phi.to(x.dtype).expand(graphs.size, -1)
        return median_of_segments(x, graphs.index, graphs.size, phi, *SOLVER[x.dtype], interior=True).value

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        options = ", ".join(f"{name}={value}" for name, value in self._exponent_options().items())
        return f"{self.in_channels}, {options}, eps={self.eps}"


def _graphs(x: Tensor, batch: Tensor | None, batch_size: int | None) -> Segments:
    if batch is None:
        if batch_size not in (None, 1):
            raise InputError(f"expected `batch`, the graph of each node, for batch_size={batch_size}; got None")
        return Segments(torch.zeros(len(x), dtype=torch.int64, device=x.device), 1)
    if batch.dtype != torch.int64 or batch.shape != x.shape[:1]:
        raise InputError(f"expected batch as int64 ({len(x)},); got {batch.dtype} {tuple(batch.shape)}")
    if batch_size is None:
        batch_size = int(batch.max()) + 1 if len(batch) else 0
    on_cpu = batch.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and len(batch) and not (batch.min() >= 0 and batch.max() < batch_size):
        came = f"{int(batch.min())} to {int(batch.max())}"
        raise InputError(f"expected the graphs of the nodes from 0 to {batch_size - 1}; got {came}")
    return Segments(batch, batch_size)
