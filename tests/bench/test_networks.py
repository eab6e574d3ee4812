"""The benchmark of whole networks: who takes part, that all do the same work, what is refused; no times."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from augserve.bench.networks import IMAGE, NORMS, TORCH, WORK, measure_networks, networks
from augserve.errors import ConfigurationError
from augserve.norms import norm_layers


def test_every_norm_trains_and_infers_in_every_mode_it_has() -> None:
    rows = measure_networks(batch=18, rounds=2)
    expected = [(norm, WORK[0]) for norm in NORMS]
    expected += [(norm, work) for norm in NORMS for work in WORK[1:] if norm != TORCH or work == "tracked"]
    assert [(row.norm, row.work) for row in rows] == expected
    for row in rows:
        assert row.ms > 0
        assert row.ratio > 0
        assert row.images_per_second == pytest.approx(18e3 / row.ms)
        if row.work == "tracked" or (row.norm, row.work) == (TORCH, "train"):
            assert row.ratio == 1.0


def test_the_networks_differ_in_their_norm_only() -> None:
    state = torch.random.get_rng_state()
    images = torch.randn((8, *IMAGE), generator=torch.Generator().manual_seed(0))
    made = networks("resnet20", 0, images)
    assert torch.equal(torch.random.get_rng_state(), state)
    first, *others = (dict(network.named_parameters()) for network in made.values())
    for other in others:
        assert other.keys() == first.keys()
        assert all(torch.equal(other[name], first[name]) for name in first)
    layers = [layer for layer in made[TORCH].modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(layers) == len(norm_layers(made["batch"])) == 19
    assert not norm_layers(made[TORCH])
    torch.testing.assert_close(made["batch"](images), made[TORCH](images), atol=1e-3, rtol=0)
    assert not torch.allclose(made["batch"](images), made["aug"](images), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "choose one of: cpu, cuda"),
        ({"model": "resnet21"}, "unknown model 'resnet21'; choose one of: densenet121"),
        ({"batch": 1}, "batch >= 2"),
        ({"rounds": 0}, "rounds >= 1"),
    ],
)
def test_impossible_measurements_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        measure_networks(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named() -> None:
    with pytest.raises(ConfigurationError, match="there is no CUDA device"):
        measure_networks("cuda")
