"""In which layout training keeps a network: channels-last where every norm of it has a fast way there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from augserve.models import build_model
from augserve.norms import library
from augserve.training.loop import _memory_format

LANES = library.Library(None, None, None, None, "avx512")
NO_LANES = LANES._replace(instruction_set="avx2")


@pytest.mark.parametrize(
    ("norm", "options", "with_lanes", "without"),
    [
        ("batch", {}, True, True),
        ("robust", {}, True, False),
        ("aug", {}, True, False),
        ("aug", {"phi": 2.0}, True, True),
        ("aug", {"phi": 1.25}, False, False),
        ("aug", {"learn_phi": True}, False, False),
    ],
)
def test_channels_last_is_taken_where_every_norm_is_fast_in_it(
    norm: str, options: dict[str, Any], with_lanes: bool, without: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("resnet20", norm=norm, norm_options=options)
    for found, fast in ((LANES, with_lanes), (NO_LANES, without)):
        monkeypatch.setattr(library, "LIBRARY", found)
        assert _memory_format(model) is (torch.channels_last if fast else torch.contiguous_format)
