"""The benchmark of the norms: who takes part, what it counts, what it refuses. Times are not tested."""

from __future__ import annotations

import pytest
import torch

from augserve.bench.norms import PapersAugNorm, contestants, measure_norms
from augserve.errors import ConfigurationError
from augserve.norms import AugNorm


def test_every_norm_takes_part_on_every_shape() -> None:
    shapes = [(8, 4, 5, 5), (16, 3)]
    rows = list(measure_norms(shapes=shapes, rounds=2, zeros=0.3, relu=True))
    names = list(contestants(4, 4, torch.device("cpu"), compiled=False))
    assert [(row.shape, row.norm) for row in rows] == [(shape, name) for shape in shapes for name in names]
    for row in rows:
        assert 0 < row.forward_ms < row.both_ms
        assert row.forward_ratio > 0
        if row.norm == "torch":
            assert (row.forward_ratio, row.both_ratio, row.extra_mib) == (1.0, 1.0, 0.0)


def test_memory_is_that_of_activations_kept() -> None:
    rows = {row.norm: row for row in measure_norms(shapes=[(64, 16, 16, 16)], rounds=1)}
    activation = 64 * 16 * 16 * 16 * 4 / 2**20
    assert rows["papers"].extra_mib > activation
    assert rows["batch"].extra_mib < 0.1 * activation
    assert rows["aug-1.5"].extra_mib < 0.1 * activation


def test_the_papers_method_is_aug_norm_where_it_has_converged() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    ours, papers = AugNorm(4, 1.5).double(), PapersAugNorm(4).double()
    y, z = ours(x), papers(x)
    torch.testing.assert_close(z, y, atol=2e-2, rtol=0)
    upstream = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    grads = [torch.autograd.grad(out, x, upstream)[0] for out in (y, z)]
    torch.testing.assert_close(grads[1], grads[0], atol=5e-2, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "choose one of: cpu, cuda"),
        ({"shapes": [(4, 3, 5)]}, r"\(N, C\) or \(N, C, H, W\)"),
        ({"shapes": [(1, 3)]}, "N >= 2"),
        ({"rounds": 0}, "rounds >= 1"),
        ({"zeros": 1.0}, r"zeros in \[0, 1\)"),
    ],
)
def test_impossible_measurements_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        measure_norms(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named() -> None:
    with pytest.raises(ConfigurationError, match="there is no CUDA device"):
        measure_norms("cuda")
