"""One contract for every norm layer, whatever it normalizes: types, copies, compilers, layouts, gradients, NaN."""

from __future__ import annotations

import copy
import io
import math
import pickle
import shutil
import sys

import pytest
import torch
from torch import Tensor, nn

from augserve.errors import InputError, StatisticsError
from augserve.norms import AugNorm2d, ConvNorm2d, StatisticsNorm, convert_norm, set_statistics, use_statistics
from augserve.statistics import Statistics
from tests.norms.cases import CASES, GRAPHS, STATISTICS_CASES, Case
from tests.tolerances import COMPILED, GROUP_ALONE, HALF

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MODES = {
    "tracked": Statistics("tracked"),
    "batch": Statistics("batch"),
    "weight": Statistics("blend", tracked_weight=0.3),
    "prior": Statistics("blend", prior=2),
}
GROUP = torch.tensor([0, 1, 2, 0, 1, 1])
GROUP_MODES = [Statistics("batch"), Statistics("blend", prior=3), Statistics("tracked")]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=["train", "eval"])
def training(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "train")


def trained(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    layer = case.layer(dtype)
    for seed in (1, 2):
        layer(case.input(dtype, seed))
    return layer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shape_dtype_and_device_are_kept_and_answers_repeat(case: Case, training: bool, dtype: torch.dtype) -> None:
    layer = case.layer(torch.float64 if dtype == torch.float64 else torch.float32).train(training)
    if isinstance(layer, ConvNorm2d):
        layer = layer.to(dtype)
    x = case.input(dtype)
    y = layer(x)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    assert torch.isfinite(y).all()
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", STATISTICS_CASES)
def test_every_mode_and_groups_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    layer, x = trained(case).eval(), case.input(dtype)
    exact = copy.deepcopy(layer).double()
    tolerance = HALF if dtype in (torch.float16, torch.bfloat16) else 1e-4
    for statistics, group in (*((mode, None) for mode in MODES.values()), (GROUP_MODES, GROUP)):
        with use_statistics(layer, statistics, group), use_statistics(exact, statistics, group):
            y = layer(x)
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
            assert torch.equal(y, layer(x))
            torch.testing.assert_close(y.double(), exact(x.double()), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_near_float32(case: Case, dtype: torch.dtype) -> None:
    layer, twin = case.layer(), case.layer()
    if isinstance(layer, ConvNorm2d):
        layer = layer.to(dtype)
        twin.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    x = case.input(dtype).requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y.float(), twin(x.detach().float()), atol=HALF, rtol=HALF)
    y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", [name for name in CASES if name != "conv"])
def test_half_precision_parameters_and_autocast(name: str) -> None:
    case = CASES[name]
    whole = case.layer()(case.input())
    half = case.layer().to(torch.bfloat16)(case.input())
    torch.testing.assert_close(half, whole, atol=HALF, rtol=HALF)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(case.layer()(case.input()), whole)


def test_copies_and_saved_layers_are_the_same_layer(case: Case) -> None:
    layer = trained(case).eval()
    x, fresh, file = case.input(), case.layer().eval(), io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for twin in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        assert torch.equal(twin(x), layer(x))
        assert repr(twin) == repr(layer)


TORCH = {"1d": nn.BatchNorm1d, "1d+L": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", STATISTICS_CASES)
def test_converted_from_torch_it_is_the_same_layer(name: str, training: bool, dtype: torch.dtype) -> None:
    case = CASES[name]
    options = {k: v for k, v in case.options if k != "track_running_stats"}
    expected = case.layer(dtype)
    network = nn.Sequential(TORCH[case.shape](4, dtype=dtype))
    given = {k: v for k, v in expected.state_dict().items() if k in network[0].state_dict()}
    network[0].load_state_dict(given, strict=False)
    learned = options.pop("learn_phi", False)
    convert_norm(network, "aug-learned" if learned else type(expected).__name__[:-6].lower(), **options)
    if learned:
        network[0].phi_logit.data.copy_(expected.phi_logit)
    assert type(network[0]) is type(expected)
    for layer in (network, expected):
        layer.train(training)
        set_statistics(layer, Statistics("batch"))
    x = case.input(dtype)
    assert torch.equal(network(x), expected(x))
    for (key, ours), theirs in zip(network[0].state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


def test_repr_names_the_class_and_its_options(case: Case) -> None:
    layer = getattr(case.layer(), "layer", case.layer())
    text = repr(layer)
    assert text.startswith(type(layer).__name__ + "(")
    for name, value in case.options:
        if name != "warm_start" and type(layer).__name__.startswith("Aug"):
            assert f"{name}={value}" in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_answer(case: Case, training: bool) -> None:
    layer = trained(case).train(training)
    x = case.input()
    y = copy.deepcopy(layer).cuda()(x.cuda())
    assert y.device.type == "cuda"
    torch.testing.assert_close(y.cpu(), layer(x), **COMPILED)


def _run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    grads = [p.grad for p in layer.parameters() if p.grad is not None]
    layer.zero_grad()
    assert x.grad is not None
    return [y.detach(), x.grad, *grads, *(b.clone() for b in layer.buffers())]


def test_compiled_is_equal(case: Case, training: bool) -> None:
    torch._dynamo.reset()
    layer = trained(case).train(training)
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(_run(compiled, case.input()), _run(layer, case.input()), **COMPILED)


def test_compiled_is_equal_without_gradients(case: Case, training: bool) -> None:
    torch._dynamo.reset()
    layer = trained(case).train(training)
    if isinstance(layer, StatisticsNorm) and not training:
        layer.statistics = Statistics("batch")
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(case.input()), layer(case.input()), **COMPILED)


def test_exponents_may_differ_between_compiled_layers() -> None:
    x = CASES["aug"].input()
    for dynamic in (None, True):
        torch._dynamo.reset()
        for phi in (1.5, 1.25, 2.0, 3.0, 1.0, math.inf):
            layer = AugNorm2d(4, phi)
            compiled = torch.compile(AugNorm2d(4, phi), backend="aot_eager", fullgraph=True, dynamic=dynamic)
            torch.testing.assert_close(_run(compiled, x), _run(layer, x), **COMPILED)


@pytest.mark.parametrize("name", STATISTICS_CASES)
def test_compiled_is_equal_in_every_mode_and_with_groups(name: str) -> None:
    torch._dynamo.reset()
    case = CASES[name]
    layer = trained(case).eval()
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    for statistics in MODES.values():
        with use_statistics(layer, statistics), use_statistics(compiled, statistics):
            torch.testing.assert_close(_run(compiled, case.input()), _run(layer, case.input()), **COMPILED)
    with use_statistics(layer, GROUP_MODES, GROUP), use_statistics(compiled, GROUP_MODES, GROUP):
        torch.testing.assert_close(_run(compiled, case.input()), _run(layer, case.input()), **COMPILED)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("c++") is None or " " in sys.prefix,
    reason="torch's compiler needs a C++ compiler, and an environment whose path has no space",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it loads its compiler
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex:UserWarning")
def test_inductor_is_equal() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    names = ("batch", "aug", "aug-learned", "robust", "group", "conv")
    network = nn.Sequential(*(CASES[name].layer() for name in names))
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True)
    x = CASES["batch"].input()
    torch.testing.assert_close(_run(compiled, x), _run(network, x), **COMPILED)


@pytest.mark.parametrize(
    ("name", "mode"), [(n, mode) for n in CASES for mode in MODES if mode == "batch" or n in STATISTICS_CASES]
)
def test_exported_program_answers_for_other_numbers_of_rows(name: str, mode: str) -> None:
    case = CASES[name]
    layer, x = trained(case).eval(), case.input()
    dynamic = None if case.is_graph else ({0: torch.export.Dim("n", min=2)},)
    with use_statistics(layer, MODES[mode]):
        program = torch.export.export(layer, (x,), dynamic_shapes=dynamic)
        more = x if case.is_graph else torch.cat([case.input(seed=3), x])
        torch.testing.assert_close(program.module()(more), layer(more), **COMPILED)


def test_an_empty_batch_gives_an_empty_answer_and_no_statistics(case: Case, training: bool) -> None:
    layer = trained(case).train(training)
    before = copy.deepcopy(layer.state_dict())
    x = case.input()[:0].requires_grad_()
    y = layer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    if isinstance(layer, StatisticsNorm):
        with use_statistics(layer, Statistics("batch"), group=torch.empty(0, dtype=torch.int64)):
            assert layer(x).shape == x.shape


ONE_POSITION = [
    n for n in CASES if CASES[n].shape in ("2d", "3d") and n.split("-")[0] not in ("layer", "group", "conv")
]


@pytest.mark.parametrize("name", ONE_POSITION)
def test_one_value_is_refused_as_torch_does(name: str) -> None:
    case = CASES[name]
    layer, x = case.layer(), case.input()
    with pytest.raises((ValueError, StatisticsError), match="more than 1 value"):
        layer(x[:1, ..., :1, :1] if x.ndim == 4 else x[:1, ..., :1, :1, :1])


def test_whole_numbers_are_refused(case: Case) -> None:
    with pytest.raises((InputError, RuntimeError)):
        case.layer()(case.input().to(torch.int64))


def test_any_layout_gives_the_same_answer(case: Case, training: bool) -> None:
    x = case.input()
    expected = case.layer().train(training)(x)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    expanded = x[:, :1].expand_as(x)
    torch.testing.assert_close(case.layer().train(training)(strided), expected)
    torch.testing.assert_close(
        case.layer().train(training)(expanded), case.layer().train(training)(expanded.contiguous())
    )


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.shape == "2d"])
def test_channels_last_is_kept(name: str, training: bool) -> None:
    case = CASES[name]
    x = case.input()
    expected = case.layer().train(training)(x)
    y = case.layer().train(training)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert expected.is_contiguous()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name in CASES if name != "conv"])
def test_what_is_not_finite_stays_where_it_is(name: str, wrong: float) -> None:
    case = CASES[name]
    layer, x = case.layer(), case.input()
    clean = case.layer()(x)
    x[0, 1] = wrong
    y = layer(x)
    same = torch.ones_like(y, dtype=torch.bool)
    if isinstance(layer, StatisticsNorm):
        same[:, 1] = False  # the channel, in all rows
    elif case.is_graph:
        same[torch.tensor(GRAPHS) == 0, 1] = False  # the channel, in its graph
    else:
        same[0] = False  # the row: its channel, or the group of it
    # Not bit for bit: vectorised roots and powers round differently by where a value stands in memory.
    torch.testing.assert_close(y[same], clean[same], atol=GROUP_ALONE, rtol=GROUP_ALONE)
    assert torch.isnan(y[0, 1]).all()
