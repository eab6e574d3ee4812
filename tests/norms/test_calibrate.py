"""calibrate: running statistics of a whole data set, exactly, whatever the batches and the memory."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from augserve.errors import InputError, StatisticsError
from augserve.norms import AugNorm2d, BatchNorm2d, RobustNorm2d, calibrate, set_statistics
from augserve.statistics import Statistics
from tests import oracles
from tests.tolerances import CALIBRATED

KINDS = {
    "batch": BatchNorm2d,
    "aug": AugNorm2d,
    "median": lambda c, **k: AugNorm2d(c, 1.0, **k),
    "aug-3": lambda c, **k: AugNorm2d(c, 3.0, **k),
    "midrange": lambda c, **k: AugNorm2d(c, math.inf, **k),
    "learned": lambda c, **k: AugNorm2d(c, learn_phi=True, **k),
    "robust": lambda c, **k: RobustNorm2d(c, track_running_stats=True, **k),
    "robust-range": lambda c, **k: RobustNorm2d(c, track_running_stats=True, track="range", **k),
}


class Network(nn.Module):
    def __init__(self, norm: type[nn.Module], **options: object) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3), norm(6, **options)
        self.conv2, self.norm2 = nn.Conv2d(6, 4, 3), norm(4, **options)
        self.dropout, self.unused = nn.Dropout(0.5), norm(2, **options)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm2(self.conv2(self.dropout(torch.relu(self.norm1(self.conv1(x))))))
        return y


@pytest.fixture
def images() -> Tensor:
    return torch.randn(23, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 + 1


@pytest.fixture(params=KINDS)
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    return Network(KINDS[request.param])


@pytest.mark.parametrize("memory", [2**30, 5000, 0], ids=["kept", "partly", "streamed"])
def test_each_layer_holds_the_statistics_of_its_inputs(network: Network, images: Tensor, memory: int) -> None:
    report = calibrate(network, images.split(5), memory=memory)
    assert (report.calibrated, report.unused, report.rows) == (("norm1", "norm2"), ("unused",), 23)
    assert network.training
    assert network.dropout.training
    assert int(network.unused.num_batches_tracked) == 0
    network.eval()
    inputs = {}
    for name in ("norm1", "norm2"):
        layer = getattr(network, name)
        layer.register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0].detach().double()}))
    set_statistics(network, Statistics("tracked"))
    network(images)
    for name, x in inputs.items():
        layer = getattr(network, name)
        whole = copy.deepcopy(layer).double().train()
        whole.momentum = 1.0
        whole(x)
        for buffer in ("running_mean", layer.spread):
            torch.testing.assert_close(getattr(layer, buffer).double(), getattr(whole, buffer), **CALIBRATED)
        assert int(layer.num_batches_tracked) == 5


def test_first_layer_is_exact_against_an_oracle(images: Tensor) -> None:
    for kind, build in (("batch", KINDS["batch"]), ("aug", KINDS["aug"])):
        layer = build(3, dtype=torch.float64)
        calibrate(nn.Sequential(layer), images.double().split(7))
        center, spread = oracles.statistics(kind, images.double().numpy())
        m = images.numel() / 3
        torch.testing.assert_close(layer.running_mean, torch.from_numpy(center), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(layer.running_var, torch.from_numpy(spread) * m / (m - 1), rtol=1e-8, atol=1e-8)


def test_batches_do_not_matter(network: Network, images: Tensor) -> None:
    other = copy.deepcopy(network)
    calibrate(network, images.split(1))
    calibrate(other, images.split(16))
    for ours, theirs in zip(network.buffers(), other.buffers(), strict=True):
        if ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_tracked_then_answers_as_batch_does_on_the_whole_set(network: Network, images: Tensor) -> None:
    calibrate(network, images.split(5))
    network.eval()
    set_statistics(network, Statistics("tracked"))
    tracked = network(images)
    set_statistics(network, Statistics("batch"))
    m = 23 * 4 * 4
    torch.testing.assert_close(tracked, network(images), rtol=2 / m, atol=2 / m)


def test_loaders_of_every_kind(images: Tensor) -> None:
    torch.manual_seed(0)
    first = Network(BatchNorm2d)
    networks = [copy.deepcopy(first) for _ in range(3)]
    labels = torch.arange(23)
    dataset = torch.utils.data.TensorDataset(images, labels)
    calibrate(networks[0], iter(images.split(5)))
    calibrate(networks[1], torch.utils.data.DataLoader(dataset, batch_size=5))
    named = [{"pixels": part} for part in images.split(5)]
    report = calibrate(networks[2], named, forward=lambda batch: networks[2](batch["pixels"]))
    assert report.rows == 23
    for other in networks[1:]:
        for ours, theirs in zip(networks[0].buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_what_cannot_be_calibrated_is_refused_and_nothing_changes(images: Tensor) -> None:
    with pytest.raises(StatisticsError, match="no norm layer"):
        calibrate(nn.Conv2d(3, 3, 1), [images])
    with pytest.raises(StatisticsError, match="keeps no running statistics"):
        calibrate(nn.Sequential(BatchNorm2d(3, track_running_stats=False)), [images])
    network = nn.Sequential(BatchNorm2d(3))
    for loader in ([], [None], ["images"], [[]]):
        with pytest.raises(InputError):
            calibrate(network, loader)
    shared = BatchNorm2d(3)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(StatisticsError, match="'0' runs more than once"):
        calibrate(twice, [images])
    with pytest.raises(StatisticsError, match="more than 1 value"):
        calibrate(network, [images[:1, :, :1, :1]])
    assert int(network[0].num_batches_tracked) == 0
    with pytest.raises(StatisticsError, match="reached no norm layer"):
        calibrate(network, [images], forward=lambda _: None)
    swapped = nn.ModuleList([BatchNorm2d(3), BatchNorm2d(3)])
    orders = iter([(0, 1), (1, 0)])
    with pytest.raises(StatisticsError, match="in another order"):
        calibrate(swapped, images.split(12), forward=lambda x: [swapped[k](x) for k in next(orders)])
    broken = Network(BatchNorm2d)
    broken.conv2.weight.data[0] = math.nan
    before = copy.deepcopy(broken.state_dict())
    with pytest.raises(StatisticsError, match="'norm2': its inputs hold NaN"):
        calibrate(broken, [images])
    for name, value in broken.norm1.state_dict().items():
        assert torch.equal(value, before[f"norm1.{name}"])
    assert torch.equal(shared.running_mean, torch.zeros(3))
