"""The norms by name: every name builds, options are checked, defaults differ only in the mode of inference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from augserve.errors import ConfigurationError
from augserve.norms import AugNorm2d, list_norms, norm_factory
from augserve.norms.base import StatisticsNorm


@pytest.mark.parametrize("name", list_norms())
def test_every_name_builds_a_layer(name: str) -> None:
    layer = norm_factory(name)(4)
    assert layer(torch.randn(3, 4, 2, 2)).shape == (3, 4, 2, 2)
    if isinstance(layer, StatisticsNorm):
        assert layer.track_running_stats


@pytest.mark.parametrize(("tracked", "untracked"), [("batch", "batch-untracked"), ("robust-tracked", "robust")])
def test_tracking_is_only_the_default_mode(tracked: str, untracked: str) -> None:
    one, other = norm_factory(tracked)(4), norm_factory(untracked)(4)
    assert type(one) is type(other)
    assert (one.statistics.mode, other.statistics.mode) == ("tracked", "batch")
    x = torch.randn(6, 4, 3, 3)
    assert torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())


def test_options_reach_the_layer_and_wrong_ones_are_refused() -> None:
    layer = norm_factory("aug", {"phi": 1.25, "eps": 1e-3})(4)
    assert isinstance(layer, AugNorm2d)
    assert (layer.phi, layer.eps) == (1.25, 1e-3)
    assert norm_factory("median")(4).phi == 1.0
    with pytest.raises(ConfigurationError, match="does not take 'phi'"):
        norm_factory("batch", {"phi": 1.5})
    with pytest.raises(ConfigurationError, match="phi must lie in"):
        norm_factory("aug", {"phi": 0.5})
    with pytest.raises(
        ConfigurationError, match=r"aug, aug-learned, batch, .*, none, oni, robust, robust-tracked, spectral"
    ):
        norm_factory("augh")
    assert isinstance(norm_factory("none")(4), nn.Identity)
