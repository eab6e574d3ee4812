"""OCNN's penalty: the published numbers, sums by loops, and the distance of the whole map from orthogonal."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from augserve.norms.baselines import Form, ocnn_penalty, ocnn_penalty_of
from tests.norms.test_baselines import EXACT, close, golden, gradient, normal

Array = NDArray[np.float64]


@pytest.mark.parametrize(("case", "stride"), [("k3s1", 1), ("k3s2", 2), ("k5s1", 1)])
def test_ocnn_penalty_is_the_published_one(case: str, stride: int) -> None:
    # Those numbers are the norm, not its square, by rows, and with padding 1 whatever the kernel and the stride:
    # k5s1 leaves out far shifts, and k3s2 has the shifts -1 and +1, with the identity at +1.
    arrays = golden("ocnn_penalty")

    def penalty(w: Tensor) -> Tensor:
        return ocnn_penalty(w, stride, form="row", padding=1, squared=False)

    close(penalty(arrays[f"{case}_w"]), arrays[f"{case}_deconv_orth_dist"])
    close(gradient(penalty, arrays[f"{case}_w"]), arrays[f"{case}_grad"])


@pytest.mark.parametrize(("case", "form"), [("wide", "row"), ("tall", "column")])
def test_ocnn_penalty_of_a_matrix_is_the_published_one(case: str, form: Form) -> None:
    arrays = golden("ocnn_penalty")
    for choice in (form, "auto"):
        close(ocnn_penalty(arrays[f"{case}_w"], form=choice, squared=False), arrays[f"{case}_orth_dist"])
        grad = gradient(lambda w, choice=choice: ocnn_penalty(w, form=choice, squared=False), arrays[f"{case}_w"])
        close(grad, arrays[f"{case}_grad"])


def penalty_by_loops(kernel: Array, stride: int) -> float:
    """Sum over all pairs of outputs and all shifts that are multiples of the stride."""
    m, _, k, _ = kernel.shape
    total = 0.0
    for i, j, dy, dx in itertools.product(range(m), range(m), range(-k + 1, k), range(-k + 1, k)):
        if dy % stride or dx % stride:
            continue
        inner = 0.0
        for y, x in itertools.product(range(k), range(k)):
            if 0 <= y + dy < k and 0 <= x + dx < k:
                inner += float(kernel[i, :, y, x] @ kernel[j, :, y + dy, x + dx])
        total += (inner - float(i == j and dy == 0 and dx == 0)) ** 2
    return total


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_ocnn_penalty_is_the_sum_over_pairs_and_shifts(k: int, stride: int) -> None:
    kernel = normal(4, 3, k, k)
    ours = ocnn_penalty(kernel, stride, form="row")
    assert ours.item() == pytest.approx(penalty_by_loops(kernel.numpy(), stride), rel=EXACT)
    assert ocnn_penalty(kernel, stride, form="row", squared=False).item() == pytest.approx(ours.item() ** 0.5)


def convolution_matrix(kernel: Array, size: int, stride: int, dilation: int = 1) -> Array:
    """Return the matrix (M positions, N size^2) of a convolution on a torus of size x size."""
    m, n, kh, kw = kernel.shape
    steps = range(0, size, stride)
    matrix = np.zeros((m, len(steps), len(steps), n, size, size))
    for (a, y), (b, x) in itertools.product(enumerate(steps), enumerate(steps)):
        for u, v in itertools.product(range(kh), range(kw)):
            matrix[:, a, b, :, (y + dilation * u) % size, (x + dilation * v) % size] += kernel[:, :, u, v]
    return matrix.reshape(m * len(steps) ** 2, n * size**2)


@pytest.mark.parametrize(
    ("k", "size", "stride", "dilation"), [(1, 2, 1, 1), (2, 6, 2, 1), (3, 6, 1, 1), (3, 8, 2, 1), (3, 9, 3, 1)]
)
def test_ocnn_penalty_is_the_distance_of_the_whole_map_from_orthogonal(
    k: int, size: int, stride: int, dilation: int
) -> None:
    kernel = normal(4, 3, k, k)
    matrix = convolution_matrix(kernel.numpy(), size, stride, dilation)
    positions = (size // stride) ** 2
    for form, gram in (("row", matrix @ matrix.T), ("column", matrix.T @ matrix)):
        whole = float(np.sum((gram - np.eye(len(gram))) ** 2)) / positions
        assert ocnn_penalty(kernel, stride, form=form).item() == pytest.approx(whole, rel=EXACT)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 2), (2, 2), (2, 3), (4, 2)])
def test_ocnn_penalty_of_a_dilated_convolution(stride: int, dilation: int) -> None:
    layer = nn.Conv2d(3, 4, 3, stride=stride, dilation=dilation, dtype=torch.float64)
    matrix = convolution_matrix(layer.weight.detach().numpy(), 24, stride, dilation)
    whole = float(np.sum((matrix @ matrix.T - np.eye(len(matrix))) ** 2)) / (24 // stride) ** 2
    assert ocnn_penalty_of(layer, form="row").item() == pytest.approx(whole, rel=EXACT)


def test_ocnn_penalty_forms_differ_by_a_constant() -> None:
    kernel, stride = normal(4, 3, 3, 5), (2, 1)
    rows, columns = (ocnn_penalty(kernel, stride, form=form) for form in ("row", "column"))
    assert (rows - columns).item() == pytest.approx(4 - 3 * 2, rel=1e-10)
    auto = ocnn_penalty(kernel, stride)  # 4 outputs of 6 phases: rows
    assert torch.equal(auto, rows)


def test_ocnn_penalty_sums_the_groups() -> None:
    kernel = normal(6, 2, 3, 3)
    for form in ("row", "column"):
        parts = sum(ocnn_penalty(part, 2, form=form).item() for part in kernel.chunk(3))
        assert ocnn_penalty(kernel, 2, groups=3, form=form).item() == pytest.approx(parts, rel=EXACT)
    depthwise = torch.zeros(5, 1, 3, 3)
    depthwise[:, 0, 1, 1] = 1
    assert ocnn_penalty(depthwise, groups=5).item() == 0
    assert ocnn_penalty(depthwise).item() > 1  # as one map of 1 input it is not


def test_ocnn_penalty_is_zero_for_orthogonal_kernels_only() -> None:
    q = torch.linalg.qr(normal(6, 6)).Q
    identity = torch.zeros(4, 4, 3, 3, dtype=torch.float64)
    identity[:, :, 1, 1] = torch.eye(4, dtype=torch.float64)
    blocks = torch.linalg.qr(normal(12, 12)).Q.reshape(12, 3, 2, 2)  # stride 2, blocks do not overlap
    orthogonal = [(q.reshape(6, 6, 1, 1), 1), (q[:4].reshape(4, 6, 1, 1), 1), (q[:, :4].reshape(6, 4, 1, 1), 2)]
    for kernel, stride in [*orthogonal, (identity, 1), (blocks, 2)]:
        assert ocnn_penalty(kernel, stride).item() < 1e-24
        assert ocnn_penalty(1.1 * kernel, stride).item() > 0.01
        assert ocnn_penalty(kernel + 0.1 * normal(*kernel.shape), stride).item() > 0.01
    for squared in (True, False):
        assert gradient(lambda w, s=squared: ocnn_penalty(w, squared=s), identity).eq(0).all()


@pytest.mark.parametrize("form", ["row", "column"])
def test_ocnn_gradient_is_the_derivative(form: Form) -> None:
    kernel = normal(4, 2, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: ocnn_penalty(w, 2, groups=2, form=form), kernel)


def test_ocnn_penalty_of_a_network_is_the_sum_over_its_convolutions() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(8, 2),
        nn.Conv1d(2, 2, 1),
    )
    expected = ocnn_penalty(network[0].weight, 2) + ocnn_penalty(network[1].weight, groups=8)
    torch.testing.assert_close(ocnn_penalty_of(network), expected)


def test_ocnn_penalty_in_half_precision_computes_in_float32() -> None:
    kernel = normal(4, 3, 3, 3).half()
    assert torch.equal(ocnn_penalty(kernel), ocnn_penalty(kernel.float()))
