"""The native kernels through torch: against float64, and what they promise whatever the layout and the threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from augserve.norms.kernels import dispatch, reference
from augserve.norms.kernels.spec import AUG, Groups
from augserve.norms.median import generalized_median, problem
from tests.norms.kernels.native_cases import (
    NEEDS_LIBRARY,
    NORMS,
    SHAPES,
    data,
    exact,
    gradients_at,
    near,
    parameters,
)
from tests.tolerances import GRADIENT, HALF, KERNEL

pytestmark = NEEDS_LIBRARY


@pytest.mark.parametrize("zeros", [0.0, 0.3], ids=["dense", "zeros"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_forward_and_backward_are_those_of_float64(name: str, shape: tuple[int, ...], zeros: float) -> None:
    spec, x, dy = NORMS[name], data(shape, zeros=zeros), data(shape, seed=1)
    weight, bias = parameters(shape[1])
    y, center, spread, grads = exact(x, weight, bias, dy, spec)
    ours, statistics = dispatch.norm_forward(x, weight, bias, None, None, *spec)
    near(ours, y, KERNEL)
    near(statistics[0], center, KERNEL)
    near(statistics[1], spread, KERNEL)
    dx, rest = dispatch.norm_backward(dy, x, weight, statistics, None, *spec)
    if spec.kind == AUG:
        grads = gradients_at(x, dy, weight, statistics[0], spec.exponent, spec.eps)
    for mine, theirs in zip((dx, *rest[:2]), grads, strict=False):
        near(mine, theirs, GRADIENT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_exponent_for_each_channel_and_its_gradient(shape: tuple[int, ...]) -> None:
    x, dy = data(shape), data(shape, seed=1)
    weight, bias = parameters(shape[1])
    exponents = torch.linspace(1.2, 3.1, shape[1])
    spec = NORMS["aug-1.5"]
    y, center, *_ = exact(x, weight, bias, dy, spec, exponents)
    ours, statistics = dispatch.norm_forward(x, weight, bias, exponents, None, *spec)
    near(ours, y, KERNEL)
    near(statistics[0], center, KERNEL)
    dx, rest = dispatch.norm_backward(dy, x, weight, statistics, exponents, *spec)
    for mine, theirs in zip((dx, *rest), gradients_at(x, dy, weight, statistics[0], exponents, 1e-5), strict=True):
        near(mine, theirs, GRADIENT)


@pytest.mark.parametrize("phi", [1.0, 1.3, 1.5, 2.0, 4.0, float("inf")])
def test_medians_of_rows_against_their_definition(phi: float) -> None:
    for m in (1, 2, 3, 64, 5000):
        x = torch.randn((7, m), generator=torch.Generator().manual_seed(m))
        result = generalized_median(x, phi, dim=1)
        expected = problem.reference(x.double(), phi)
        scale = x.double().std(dim=1, correction=0).clamp_min(1e-3)
        assert float(((result.value - expected) / scale).abs().max()) <= 1e-4
        assert (result.lower <= result.value).all()
        assert (result.value <= result.upper).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_half_precision_is_stored_and_nothing_else(name: str, dtype: torch.dtype) -> None:
    spec, x, dy = NORMS[name], data((16, 4, 9, 5)).to(dtype), data((16, 4, 9, 5), seed=1).to(dtype)
    weight, bias = parameters(4)
    ours, statistics = dispatch.norm_forward(x, weight, bias, None, None, *spec)
    whole, same = dispatch.norm_forward(x.float(), weight, bias, None, None, *spec)
    assert ours.dtype == dtype
    assert torch.equal(ours, whole.to(dtype))  # rounded once, at the end
    assert torch.equal(statistics, same)
    dx, rest = dispatch.norm_backward(dy, x, weight, statistics, None, *spec)
    whole_dx, same_rest = dispatch.norm_backward(dy.float(), x.float(), weight, statistics, None, *spec)
    assert torch.equal(dx, whole_dx.to(dtype))
    assert torch.equal(rest, same_rest)
    assert float((ours.double() - whole.double()).abs().max()) <= HALF


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    c=st.integers(1, 6),
    spatial=st.lists(st.integers(1, 40), min_size=0, max_size=3),
    name=st.sampled_from(sorted(NORMS)),
    layout=st.sampled_from(["contiguous", "channels_last", "strided", "transposed", "offset", "expanded"]),
    threads=st.integers(1, 3),
)
def test_any_layout_and_any_number_of_threads_give_the_same(
    n: int, c: int, spatial: list[int], name: str, layout: str, threads: int
) -> None:
    shape = (n, c, *spatial)
    x = data(shape, seed=n)
    if layout == "expanded":
        x = x[:, :1].expand(shape)
    other = {
        "contiguous": lambda: x,
        "channels_last": lambda: x.movedim(1, -1).contiguous().movedim(-1, 1),
        "strided": lambda: torch.stack([x, x], dim=-1)[..., 1],
        "transposed": lambda: x.transpose(0, 1).contiguous().transpose(0, 1),
        "offset": lambda: torch.cat([torch.zeros(1), x.flatten()])[1:].view(shape),  # not aligned to 16 bytes
        "expanded": lambda: x,
    }[layout]()
    spec, weight = NORMS[name], parameters(c)[0]
    plain, same = dispatch.norm_forward(x.contiguous(), weight, None, None, None, *spec)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y, statistics = dispatch.norm_forward(other, weight, None, None, None, *spec)
        dx, rest = dispatch.norm_backward(other, other, weight, same, None, *spec)
    finally:
        torch.set_num_threads(before)
    plain_dx, same_rest = dispatch.norm_backward(x.contiguous(), x.contiguous(), weight, same, None, *spec)
    near(y, plain.double(), KERNEL)
    near(statistics, same.double(), KERNEL)
    near(dx, plain_dx.double(), GRADIENT)
    near(rest, same_rest.double(), GRADIENT)


@pytest.mark.parametrize("shape", [(130, 6), (64, 16, 8, 8), (9, 3, 70, 70)], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_the_number_of_threads_changes_no_bit(name: str, shape: tuple[int, ...]) -> None:
    spec, x = NORMS[name], data(shape, zeros=0.2)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y, statistics = dispatch.norm_forward(x, None, None, None, None, *spec)
            results.append((y, statistics, *dispatch.norm_backward(y, x, None, statistics, None, *spec)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(24, 5), (48, 20), (24, 5, 4, 4), (24, 18, 3, 3), (24, 3, 33, 32)], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_a_group_is_normalized_as_if_alone_to_the_bit(
    name: str, shape: tuple[int, ...], channels_last: bool
) -> None:
    if channels_last and len(shape) != 4:
        pytest.skip("only images have that layout")
    spec, x = NORMS[name], data(shape)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = parameters(shape[1])
    running = torch.full((shape[1],), 0.3), torch.full((shape[1],), 1.7)
    n = shape[0]
    group = torch.tensor([0, 1, 2, 3] * (n // 4))[torch.randperm(n, generator=torch.Generator().manual_seed(2))]
    weights = torch.tensor([0.0, 0.25, 1.0, 0.0])
    order = torch.argsort(group, stable=True)
    offsets = torch.arange(5) * (n // 4)
    strange = x.clone()
    strange[group == 3] = float("nan")
    strange[group == 1] *= 1e20
    for rows_of, content in (((0, 2), strange), ((0, 1, 2, 3), x)):
        y = dispatch.norm_grouped(content, weight, bias, None, *running, order, offsets, weights, *spec)
        for g in rows_of:
            alone = dispatch.norm_grouped(
                x[group == g], weight, bias, None, *running, None, None, weights[g : g + 1], *spec
            )
            assert torch.equal(y[group == g], alone), g
    slow = reference.grouped(x, weight, bias, None, running, Groups(order, offsets), weights, spec)
    near(y, slow.double(), 10 * KERNEL)
