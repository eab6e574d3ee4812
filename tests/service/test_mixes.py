"""A request's answer is a function of that request alone: random mixes through the scheduler and real networks.

AUGSERVE_MIXES sets the number of mixes.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from augserve.export import export_onnx
from augserve.models import build_model
from augserve.service import Predictor, PredictSettings
from tests.export.conftest import KINDS, small_network
from tests.service.mixes import Ask, Mix, answered, changed, random_mix
from tests.service.tiny import save_sealed, write_model
from tests.tolerances import GROUP_ALONE

pytestmark = pytest.mark.slow

MIXES = int(os.environ.get("AUGSERVE_MIXES", "300"))
FUNCTIONS_ALONE = ("median", "robust")


def tiny_model(path: Path) -> Path:
    """The network computed by hand, whose sums begin at zeros that no row has a part in."""
    model = onnx.load(write_model(path))
    (start,) = (node for node in model.graph.node if node.output[0] == "zeros")
    start.CopyFrom(onnx.helper.make_node("ConstantOfShape", ["size"], ["zeros"]))
    save_sealed(model, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adaptive files: networks of the zoo, small ones with other norms, and the one computed by hand."""
    folder = tmp_path_factory.mktemp("mixes")
    written = {"tiny": tiny_model(folder / "tiny.onnx")}
    torch.manual_seed(0)
    for norm in ("aug", "robust"):
        network, rows = build_model("resnet20", norm=norm), torch.randn(16, 3, 16, 16)
        with torch.no_grad():
            for _ in range(3):
                network(rows)
        written[norm] = folder / f"{norm}.onnx"
        export_onnx(network.eval(), written[norm], example=rows)
    for norm in ("median", "batch"):
        written[norm] = folder / f"{norm}.onnx"
        export_onnx(small_network(KINDS[norm]), written[norm], example=torch.randn(9, 3, 8, 8))
    return written


@pytest.fixture(scope="module")
def predictors(files: dict[str, Path]) -> list[Predictor]:
    """The files with the native operators where there are any, and some with the functions that they hold."""
    found = [Predictor.open(path, threads=1) for path in files.values()]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AUGSERVE_NATIVE", "off")
        found += [
            Predictor.open(files[norm], threads=1, fold=False, name=f"{norm}-functions") for norm in FUNCTIONS_ALONE
        ]
    return found


def far(together: np.ndarray, alone: np.ndarray) -> float:
    """The largest difference of two answers, in the size of the largest logit above 1."""
    return float(np.abs(together - alone).max() / max(1.0, np.abs(alone).max()))


def test_an_answer_is_unchanged_by_strangers_and_close_to_that_of_running_alone(
    predictors: list[Predictor],
) -> None:
    merged = Counter[str]()
    farthest = 0.0

    async def go() -> None:
        nonlocal farthest
        for seed in range(MIXES):
            random = np.random.default_rng(seed)
            mix = random_mix(random, predictors)
            first, runs = await answered(mix)
            for ask, logits in zip(mix.asks, first, strict=True):
                alone = ask.predictor.run(ask.job())
                assert logits.shape == alone.shape
                distance = far(logits, alone)
                assert distance <= GROUP_ALONE, (seed, ask.predictor.name, ask.settings)
                farthest = max(farthest, distance)
            kept = random.random(len(mix.asks)) < 0.5
            kept[random.integers(len(mix.asks))] = True
            strange = [
                ask if keep else replace(ask, rows=changed(random, ask.rows))
                for ask, keep in zip(mix.asks, kept, strict=True)
            ]
            second, again = await answered(Mix(strange, mix.limit))
            assert runs == again
            for ask, keep, before, after in zip(mix.asks, kept, first, second, strict=True):
                if keep:
                    assert before.tobytes() == after.tobytes(), (seed, ask.predictor.name, ask.settings)
            merged.update(report.model for report in runs if report.requests > 1)

    asyncio.run(go())
    print(f"{MIXES} mixes; the farthest from running alone: {farthest:.3g}")  # noqa: T201 - pytest -s shows it
    assert set(merged) == {predictor.name for predictor in predictors}  # runs were shared, of each file


def test_nan_and_inf_reach_their_sender_and_no_one_else(predictors: list[Predictor]) -> None:
    """Each poisoned row makes its whole group, but nothing more, answer NaN where the group's statistics count."""

    async def go() -> None:
        for predictor in predictors:
            for poison in (np.nan, np.inf, -np.inf):
                rows = np.random.default_rng(0).normal(size=(6, *predictor.manifest.shape)).astype(np.float32)
                damaged = rows.copy()
                damaged[1] = poison
                pairs = PredictSettings(tracking=False, batch_size=2)
                asks = [Ask(predictor, pairs, damaged, "a"), Ask(predictor, pairs, rows, "b")]
                (sick, healthy), runs = await answered(Mix(asks, 64))
                assert runs[-1].requests == 2
                assert np.isfinite(healthy).all()
                assert not np.isfinite(sick[:2]).all()
                np.testing.assert_array_equal(sick[2:], healthy[2:])  # the same rows in groups of their own

    asyncio.run(go())


def test_groups_matter_in_these_networks(predictors: list[Predictor]) -> None:
    """What the other tests compare would differ, were the statistics of a group not its own."""
    for predictor in predictors:
        rows = np.random.default_rng(0).normal(size=(6, *predictor.manifest.shape)).astype(np.float32)
        rows[3:] *= 3
        whole, parted, tracked = (
            predictor.run(predictor.prepare(rows, PredictSettings(tracking=tracking, batch_size=size)))
            for tracking, size in ((False, None), (False, 3), (True, None))
        )
        assert far(parted, whole) > 1e3 * GROUP_ALONE
        assert far(tracked, whole) > 1e3 * GROUP_ALONE
