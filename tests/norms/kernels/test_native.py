"""The native kernels through torch: against float64, against the plain-torch path, and what they promise."""

from __future__ import annotations

import copy
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from augserve.models import build_model
from augserve.norms import (
    AugNorm2d,
    BatchNorm1d,
    BatchNorm2d,
    RobustNorm2d,
    StatisticsNorm,
    norm_layers,
    use_statistics,
)
from augserve.norms.kernels import native, operators, reference
from augserve.norms.kernels.spec import AUG, ROBUST, ROBUST_RANGE, Groups, Spec
from augserve.norms.median import generalized_median, problem
from augserve.norms.reduction import along_channels, reduced_dims
from augserve.statistics import Statistics
from tests.norms.cases import CASES, STATISTICS_CASES, Case
from tests.tolerances import COMPILED, GRADIENT, HALF, KERNEL

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason="no native library: it needs a C++ compiler")

HEADER = Path(__file__).parents[3] / "native" / "include" / "augserve.h"
NORMS = {
    "batch": Spec(AUG, 2.0, 1e-5, 1e-5, 32),
    "aug-1.1": Spec(AUG, 1.1, 1e-5, 1e-5, 32),
    "aug-1.5": Spec(AUG, 1.5, 1e-5, 1e-5, 32),
    "aug-1.75": Spec(AUG, 1.75, 1e-5, 1e-5, 32),
    "aug-3": Spec(AUG, 3.0, 1e-5, 1e-5, 32),
    "aug-9": Spec(AUG, 9.0, 1e-5, 1e-5, 32),
    "robust": Spec(ROBUST, 0.2, 1e-5, 1e-5, 32),
    "robust-range": Spec(ROBUST_RANGE, 0.2, 1e-5, 1e-5, 32),
}
SHAPES = ((64, 3), (7, 5, 9), (33, 4, 4, 4), (8, 3, 16, 17), (2, 2, 40, 40), (3, 2, 2, 3, 5))


def data(shape: tuple[int, ...], seed: int = 0, zeros: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 2 + 1
    return torch.where(torch.rand(shape, generator=generator) < zeros, 0.0, x)


def parameters(channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(channels, generator=generator) + 1, torch.randn(channels, generator=generator)


def exact(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, spec: Spec, exponents: Tensor | None = None) -> Any:
    """Forward and gradients in float64, by plain torch and automatic differentiation."""
    given = [x.double(), weight.double(), bias.double(), None if exponents is None else exponents.double()]
    leaves = [None if part is None else part.detach().requires_grad_() for part in given]
    y, center, spread = reference.normalize(*leaves, spec)
    wanted = [part for part in leaves if part is not None]
    return y.detach(), center.detach(), spread.detach(), torch.autograd.grad(y, wanted, dy.double())


def gradients_at(
    x: Tensor, dy: Tensor, weight: Tensor, mu: Tensor, phi: float | Tensor, eps: float
) -> tuple[Tensor, ...]:
    """AugNorm's gradients by their formulas in float64, at the median that a kernel found.

    The weight of a value beside the median is as good as the median: with another one's rounding it is another.
    """
    x, dy, dims = x.double(), dy.double(), reduced_dims(x)
    mu, gamma = along_channels(mu.double(), x), along_channels(weight.double(), x)
    phi = along_channels(phi.double(), x) if isinstance(phi, Tensor) else phi
    s = x - mu
    r = (s.square().mean(dim=dims, keepdim=True) + eps).rsqrt()
    t, sum_dy = s * r, dy.sum(dim=dims, keepdim=True)
    sum_dy_t = (dy * t).sum(dim=dims, keepdim=True)
    d_mu = -gamma * r * (sum_dy - t.mean(dim=dims, keepdim=True) * sum_dy_t)
    a = s.abs().clamp_min(1e-14)
    w = a.pow(phi - 2)
    total = w.sum(dim=dims, keepdim=True)
    dx = gamma * r * (dy - t * t.mul(dy).mean(dim=dims, keepdim=True)) + d_mu * w / total
    slope = (w * s * a.log()).sum(dim=dims, keepdim=True) / ((phi - 1) * total)
    return dx, sum_dy_t.flatten(), sum_dy.flatten(), (d_mu * slope).flatten()


def near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Equal up to `tolerance` of the largest number."""
    scale = max(float(theirs.abs().max()), 1e-30)
    torch.testing.assert_close(ours.double() / scale, theirs / scale, atol=tolerance, rtol=0)


@pytest.mark.parametrize("zeros", [0.0, 0.3], ids=["dense", "zeros"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_forward_and_backward_are_those_of_float64(name: str, shape: tuple[int, ...], zeros: float) -> None:
    spec, x, dy = NORMS[name], data(shape, zeros=zeros), data(shape, seed=1)
    weight, bias = parameters(shape[1])
    y, center, spread, grads = exact(x, weight, bias, dy, spec)
    ours, statistics = operators.norm_forward(x, weight, bias, None, None, *spec)
    near(ours, y, KERNEL)
    near(statistics[0], center, KERNEL)
    near(statistics[1], spread, KERNEL)
    dx, rest = operators.norm_backward(dy, x, weight, statistics, None, *spec)
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
    ours, statistics = operators.norm_forward(x, weight, bias, exponents, None, *spec)
    near(ours, y, KERNEL)
    near(statistics[0], center, KERNEL)
    dx, rest = operators.norm_backward(dy, x, weight, statistics, exponents, *spec)
    for mine, theirs in zip((dx, *rest), gradients_at(x, dy, weight, statistics[0], exponents, 1e-5), strict=True):
        near(mine, theirs, GRADIENT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_half_precision_is_stored_and_nothing_else(name: str, dtype: torch.dtype) -> None:
    spec, x, dy = NORMS[name], data((16, 4, 9, 5)).to(dtype), data((16, 4, 9, 5), seed=1).to(dtype)
    weight, bias = parameters(4)
    ours, statistics = operators.norm_forward(x, weight, bias, None, None, *spec)
    whole, same = operators.norm_forward(x.float(), weight, bias, None, None, *spec)
    assert ours.dtype == dtype
    assert torch.equal(ours, whole.to(dtype))  # rounded once, at the end
    assert torch.equal(statistics, same)
    dx, rest = operators.norm_backward(dy, x, weight, statistics, None, *spec)
    whole_dx, same_rest = operators.norm_backward(dy.float(), x.float(), weight, statistics, None, *spec)
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
    plain, same = operators.norm_forward(x.contiguous(), weight, None, None, None, *spec)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y, statistics = operators.norm_forward(other, weight, None, None, None, *spec)
        dx, rest = operators.norm_backward(other, other, weight, same, None, *spec)
    finally:
        torch.set_num_threads(before)
    plain_dx, same_rest = operators.norm_backward(x.contiguous(), x.contiguous(), weight, same, None, *spec)
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
            y, statistics = operators.norm_forward(x, None, None, None, None, *spec)
            results.append((y, statistics, *operators.norm_backward(y, x, None, statistics, None, *spec)))
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
        y = operators.norm_grouped(content, weight, bias, None, *running, order, offsets, weights, *spec)
        for g in rows_of:
            alone = operators.norm_grouped(
                x[group == g], weight, bias, None, *running, None, None, weights[g : g + 1], *spec
            )
            assert torch.equal(y[group == g], alone), g
    slow = reference.grouped(x, weight, bias, None, running, Groups(order, offsets), weights, spec)
    near(y, slow.double(), 10 * KERNEL)


@pytest.mark.parametrize("name", STATISTICS_CASES)
def test_a_layer_is_the_same_without_the_library(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    fast, slow = case.layer(), case.layer()
    for seed in (1, 2):
        results = []
        for layer, library in ((fast, native.LIBRARY), (slow, None)):
            monkeypatch.setattr(native, "LIBRARY", library)
            x = case.input(seed=seed).requires_grad_()
            y = layer(x)
            y.square().sum().backward()
            assert x.grad is not None
            results.append([y.detach(), x.grad, *layer.buffers(), *(p.grad for p in layer.parameters())])
            layer.zero_grad()
        torch.testing.assert_close(results[0], results[1], **COMPILED)


def test_a_subclass_with_a_formula_of_its_own_is_asked() -> None:
    class Fixed(BatchNorm2d):
        def unbiased(self, spread: Tensor, count: int) -> Tensor:
            return torch.zeros_like(spread)

    class Renamed(Fixed):
        pass

    for kind in (Fixed, Renamed):
        layer = kind(4, momentum=1.0)
        layer(CASES["batch"].input())
        assert (layer.running_var == 0).all()
        assert layer.kernel_spec() is None
    assert type("Plain", (BatchNorm2d,), {})(4).kernel_spec() is not None


def test_running_statistics_are_known_to_have_changed() -> None:
    layer = AugNorm2d(4)
    before = layer.running_mean._version, layer.running_var._version
    layer(CASES["aug"].input())
    assert (layer.running_mean._version, layer.running_var._version) > before


@pytest.mark.parametrize("name", ["batch", "aug", "aug-3", "aug-learned", "robust"])
def test_gradients_can_be_differentiated_again(name: str) -> None:
    case = CASES[name]
    layers = case.layer(), case.layer(torch.float64)
    seconds = []
    for layer, dtype in zip(layers, (torch.float32, torch.float64), strict=True):
        x = case.input(dtype).requires_grad_()
        (first,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        seconds.append(second.double())
    scale = seconds[1].abs().max()
    torch.testing.assert_close(seconds[0] / scale, seconds[1] / scale, atol=5e-3, rtol=0)


def test_nothing_of_the_size_of_the_activations_is_kept_but_the_input() -> None:
    x = data((8, 4, 16, 16)).requires_grad_()
    for layer in (AugNorm2d(4), AugNorm2d(4, 1.3), BatchNorm2d(4), RobustNorm2d(4, track_running_stats=True)):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            layer(x)
        large = [t for t in kept if t.numel() >= x.numel()]
        assert {t.data_ptr() for t in large} == {x.data_ptr()}


def test_operators_pass_torchs_own_checks() -> None:
    x, weight, bias = data((4, 3, 5, 5)), *parameters(3)
    spec = NORMS["aug-1.5"]
    statistics = operators.norm_forward(x, weight, bias, None, None, *spec)[1]
    running = torch.zeros(3), torch.ones(3)
    order, offsets, lambdas = torch.tensor([2, 0, 1, 3]), torch.tensor([0, 1, 4]), torch.tensor([0.5, 0.0])
    swapped = data((3, 4, 5, 5)).transpose(0, 1)
    for operator, arguments in (
        (operators.norm_forward, (x, weight, bias, None, None, *spec)),
        (operators.norm_forward, (swapped, weight, bias, None, None, *spec)),
        (operators.norm_backward, (x, swapped, weight, statistics, None, *spec)),
        (operators.norm_backward, (x, x, weight, statistics, None, *spec)),
        (operators.norm_grouped, (x, weight, bias, None, *running, order, offsets, lambdas, *spec)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_network_compiles_into_one_graph_and_learns_the_same() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build_model("resnet20", norm="aug")
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    x = data((8, 3, 16, 16))
    for network in (model, compiled):
        network(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        near(theirs.grad, ours.grad.double(), 2e-2)
    for (name, ours), theirs in zip(norm_layers(model).items(), norm_layers(twin).values(), strict=True):
        torch.testing.assert_close(theirs.running_mean, ours.running_mean, atol=1e-3, rtol=1e-3, msg=name)


def test_an_exported_program_answers_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["aug"]
    layer, x = case.layer().eval(), case.input()
    with use_statistics(layer, Statistics("batch")):
        program = torch.export.export(layer, (x,)).module()
        expected = layer(x)
    torch.testing.assert_close(program(x), expected)
    monkeypatch.setattr(native, "LIBRARY", None)
    torch.testing.assert_close(program(x), expected, **COMPILED)


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


def test_structs_are_those_of_the_header() -> None:
    if not HEADER.exists():
        pytest.skip("the header is not part of the installed package")
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    packed = {"forward": native._FORWARD, "backward": native._BACKWARD, "median": native._MEDIAN}
    for name, form in packed.items():
        body = re.search(rf"typedef struct augserve_{name} \{{(.*?)\}}", text, flags=re.S)
        assert body is not None
        kinds = ""
        for field in body.group(1).split(";"):
            words = field.replace("const ", "").split(None, 1)
            if len(words) < 2:
                continue
            for variable in words[1].split(","):
                pointer = "*" in variable or "*" in words[0]
                kind = "q" if pointer or words[0] == "int64_t" else "d" if words[0] == "double" else "qqq"
                kinds += kind
        expanded = "".join(kind * int(count or 1) for count, kind in re.findall(r"(\d*)([qd])", form.format))
        assert kinds == expanded, name
        assert struct.calcsize(form.format) == 8 * len(kinds)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="exponent"):
        native.forward(data((4, 3)), None, None, None, None, Spec(AUG, 0.5, 1e-5, 1e-5, 32))
    with pytest.raises(ValueError, match="1 value"):
        BatchNorm1d(3)(data((1, 3)))


def test_memory_that_is_not_there_is_never_read() -> None:
    x, spec = data((4, 3, 5, 5)), NORMS["aug-1.5"]
    for weight in (
        torch.ones(2),
        torch.ones(3, dtype=torch.float64),
        torch.ones(6)[::2],
        torch.ones(3, device="meta"),
    ):
        with pytest.raises(ValueError, match="expected 3 numbers"):
            native.forward(x, weight, None, None, None, spec)
    statistics = operators.norm_forward(x, None, None, None, None, *spec)[1]
    with pytest.raises(ValueError, match="shape of x"):
        native.backward(x[:2], x, None, statistics, None, spec)
    with pytest.raises(ValueError, match="expected 12 numbers"):
        native.backward(x, x, None, statistics[:3], None, spec)
    order = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="expected 4 numbers"):
        native.grouped(x, None, None, None, None, Groups(order, torch.tensor([0, 3])), torch.zeros(1), spec)
    wide = nn.Parameter(torch.ones(1)).expand(3)  # a parameter without memory of its own
    layer = AugNorm2d(3)
    y = torch.func.functional_call(layer, {"weight": wide}, (x,))
    torch.testing.assert_close(y, AugNorm2d(3)(x))


def test_cases_hold_a_norm_of_every_kernel() -> None:
    kinds = {layer.spec().kind for layer in map(Case.layer, CASES.values()) if isinstance(layer, StatisticsNorm)}
    assert kinds == {AUG, ROBUST, ROBUST_RANGE}
