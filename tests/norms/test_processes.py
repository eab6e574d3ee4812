"""Statistics over several processes: what one process computes on the whole batch, whoever holds which rows.

A group of processes is started once for two and once for three; each process writes down what it saw, and the tests
compare that with one process.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn

from augserve.errors import StatisticsError
from augserve.norms import (
    BatchNorm2d,
    library,
    synchronize_statistics,
)
from augserve.norms.median.solve import solve
from augserve.norms.median.values import Stored
from augserve.norms.processes import Processes
from tests import oracles
from tests.norms.process_jobs import (
    CASES,
    CHANNELS,
    FAMILIES,
    FEW,
    LEARNED,
    PATIENCE_S,
    SIZES,
    SOLVERS,
    Case,
    fit,
    network,
    pairs,
    solver_data,
    state,
    train,
    work,
)
from tests.tolerances import MEDIAN, PROCESSES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=SIZES, ids=lambda world: f"{world} processes")
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two, then of three, processes saw."""
    world, folder = request.param, tmp_path_factory.mktemp("processes")
    group = multiprocessing.spawn(work, (world, folder), world, join=False)
    end = monotonic() + PATIENCE_S
    try:
        while not group.join(timeout=max(end - monotonic(), 0)):
            assert monotonic() < end, f"{world} processes wait for each other since {PATIENCE_S} s"
    finally:
        for process in group.processes:
            process.kill()
            process.join()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, where: object) -> None:
    assert actual.shape == expected.shape, where
    assert actual.dtype == expected.dtype, where
    if actual.numel():
        difference = float((actual.double() - expected.double()).abs().max())
        assert difference <= PROCESSES[dtype] * max(1.0, float(expected.abs().max())), (where, difference)


def assert_same_on_all(states: list[dict[str, Tensor]], where: object) -> None:
    for one, other in pairwise(states):
        for name, value in one.items():
            assert torch.equal(value.nan_to_num(7e7), other[name].nan_to_num(7e7)), (where, name)


# What must hold.


@pytest.mark.parametrize("name", CASES)
def test_processes_train_as_one_with_all_rows(
    name: str, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the arithmetic of the processes, plain torch: a gradient beside the median follows the median's rounding.
    monkeypatch.setattr(library, "LIBRARY", None)
    case, world = CASES[name], len(seen)
    alone = case.layer()
    results = [each["train_every_case"][name] for each in seen]
    for step, sizes in enumerate(SIZES[world]):
        expected = train(alone, *case.batch(step, sum(sizes)))
        ours = [steps[step] for steps, _ in results]
        for rows in ("y", "x"):
            assert_near(torch.cat([own.pop(rows) for own in ours]), expected.pop(rows), case.dtype, (step, rows))
        for parameter, gradient in expected.items():
            total = torch.stack([own[parameter] for own in ours]).sum(0)
            assert_near(total, gradient, case.dtype, (step, parameter))
    assert_same_on_all([own for _, own in results], name)
    for buffer, value in state(alone).items():
        assert_near(results[0][1][buffer], value, case.dtype, buffer)


@pytest.mark.parametrize("name", SOLVERS)
def test_brackets_are_the_same_on_every_process_and_certain(name: str, seen: list[dict[str, Any]]) -> None:
    results = [each["solve_for_every_exponent"][name][0] for each in seen]
    assert_same_on_all(results, name)
    result, data, phi = results[0], solver_data(), SOLVERS[name]
    alone, _ = solve(Stored(data), phi, 1e-12, 64, interior=isinstance(phi, Tensor))
    assert int((result["num_steps"] - alone.num_steps).abs().max()) <= 4  # rounding may ask for a bisection more
    assert (result["status"] == 0).all()
    for row, values in enumerate(data):
        exponent = LEARNED[row] if isinstance(phi, Tensor) else phi
        scale = max(float(values.std(correction=0)), 1e-9 * float(values.abs().max()))
        exact = oracles.generalized_median(values.numpy(), exponent)
        mu, lower, upper = (float(result[end][row]) for end in ("value", "lower", "upper"))
        assert abs(mu - exact) <= MEDIAN[torch.float64] * scale, row
        assert lower - 1e-12 * scale <= mu <= upper + 1e-12 * scale, row
        assert upper - lower <= 2e-12 * scale, row
        assert lower - 1e-11 * scale <= exact <= upper + 1e-11 * scale, row


@pytest.mark.parametrize("name", SOLVERS)
def test_a_pass_sends_two_sums_for_each_set_that_is_not_done(name: str, seen: list[dict[str, Any]]) -> None:
    result, sent = seen[0]["solve_for_every_exponent"][name]
    steps = result["num_steps"].flatten()
    passes = [numel for _, numel in sent[4:]]  # after the extremes, the mean and the variance
    if name == "1.0":
        assert max(passes) <= 2 * len(steps)
        return
    sums = 2 if name in ("1.05", "1.2", "1.5", "1.9") else 4
    assert len(passes) == int(steps.max())
    for taken, numel in enumerate(passes):
        running = int((steps > taken).sum())
        assert sums * running <= numel <= sums * max(math.ceil(running / 0.75), 1)  # some that are done may stay


def test_one_count_and_no_rows_are_sent(seen: list[dict[str, Any]]) -> None:
    for family, (forward, backward) in seen[0]["train_and_count"].items():
        assert [dtype for dtype, _ in forward].count(torch.int64) == 1, family
        assert max(numel for _, numel in forward + backward) <= 4 * CHANNELS, family
        assert len(backward) <= 8, family
    forward, backward = seen[0]["train_and_count"]["batch"]
    assert len(forward) == 3  # the count, the mean and the variance
    assert len(backward) == 2


def test_evaluation_is_local(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        for where, (as_alone, sent) in each["evaluate"].items():
            assert as_alone, where
            assert not sent, where


def test_impossible_statistics_are_refused_by_every_process(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        refused = each["refuse"]
        for family in FAMILIES:
            assert refused[family, "one value"].startswith("StatisticsError:"), family
            assert "more than 1 value per channel" in refused[family, "one value"]
            assert refused[family, "groups"].startswith("StatisticsError:"), family
            assert "exclude each other" in refused[family, "groups"]
            assert refused[family, "no rows"] == (0, CHANNELS), family
            assert refused[family, "unchanged"], family
        assert "once_differentiable" in refused["double backward"]


@pytest.mark.parametrize("wrong", ["nan", "inf"])
def test_a_wrong_value_reaches_every_process_in_its_channel_only(wrong: str, seen: list[dict[str, Any]]) -> None:
    for each in seen:
        results = each["train_with_wrong_values"]
        for family in FAMILIES:
            (step, after), (clean, clean_after) = results[family, wrong], results[family, "None"]
            for part in ("y", "x"):
                assert torch.equal(step[part][:, [0, 2]], clean[part][:, [0, 2]]), (family, part)
            assert step["y"][:, 1].isnan().all(), family
            for buffer in after.keys() - {"num_batches_tracked", "weight", "bias", "phi_logit"}:
                assert torch.equal(after[buffer][[0, 2]], clean_after[buffer][[0, 2]]), (family, buffer)
                assert not after[buffer][1].isfinite(), (family, buffer)
                assert after[buffer][1].isnan() or wrong != "nan", (family, buffer)
    for family in FAMILIES:
        assert_same_on_all([each["train_with_wrong_values"][family, wrong][1] for each in seen], family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_of_the_processes_shares_its_statistics(family: str, seen: list[dict[str, Any]]) -> None:
    case = Case(family)
    assert "process 0 is not in the process group" in seen[0]["train_in_a_part"][family, "refused"]
    for ranks in ((0,), tuple(range(1, len(seen)))):
        alone = case.layer()
        x, upstream = (torch.cat(parts) for parts in zip(*(case.batch(r, 2 + r) for r in ranks), strict=True))
        expected = train(alone, x, upstream)
        results = [seen[rank]["train_in_a_part"][family] for rank in ranks]
        for rows in ("y", "x"):
            assert_near(torch.cat([step[rows] for step, _ in results]), expected[rows], case.dtype, (ranks, rows))
        for _, after in results:
            for actual, value in pairs(after, state(alone)):
                assert_near(actual, value, case.dtype, ranks)


def test_copies_pickles_and_loaded_layers_are_synchronised_too(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        assert all(each["copy_and_undo"][family, "twins"] for family in FEW)


def test_undone_each_process_is_alone(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        assert all(each["copy_and_undo"][family, "undone"] for family in FEW)


@pytest.mark.parametrize("norm", FEW)
def test_networks_train_as_in_one_process(norm: str, seen: list[dict[str, Any]]) -> None:
    world = len(seen)
    for sizes in ((4,) * world, SIZES[world][1]):
        alone = network(norm)
        fit(alone, sizes, None)
        results = [each["fit_networks"][norm, sizes] for each in seen]
        assert_same_on_all(results, (norm, sizes))
        for name, value in state(alone).items():
            assert_near(results[0][name], value, torch.float64, (sizes, name))


def test_without_processes_there_is_nothing_to_synchronise() -> None:
    layer = nn.Sequential(BatchNorm2d(3))
    with pytest.raises(StatisticsError, match="init_process_group"):
        synchronize_statistics(layer)
    assert layer[0].process_group is False
    with pytest.raises(StatisticsError, match="init_process_group"):
        Processes.over(torch.zeros(2, 3), (0,), None)
    assert synchronize_statistics(layer, False) == ("0",)


def test_the_guide_runs_on_two_processes(tmp_path: Path) -> None:
    guide = Path(__file__).parents[2] / "docs" / "how-to" / "train-on-several-processes.md"
    script = guide.read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "train.py").write_text(script)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        torchrun, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout == "batches of 2 x 32 images\n"
    assert (tmp_path / "network.pt").exists()
