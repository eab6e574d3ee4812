"""Exported networks with the native operators: the same file answers with them and without, and as torch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from augserve.export import export_onnx
from augserve.norms import AugNorm2d, use_statistics
from augserve.statistics import Statistics
from tests.export.conftest import KINDS, small_network
from tests.export.operators.native_operator_cases import NEEDS_LIBRARY, Feed, run, session
from tests.tolerances import GROUP_ALONE, PARITY

pytestmark = NEEDS_LIBRARY

MODES = [Statistics("batch"), Statistics("tracked"), Statistics("blend", tracked_weight=0.4), Statistics("batch")]


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, bytes]:
    network = small_network(KINDS[request.param])
    path = tmp_path_factory.mktemp("operators") / "m.onnx"
    export_onnx(network, path, example=torch.randn(9, 3, 8, 8), mode="adaptive", native="off")
    return network, path.read_bytes()


def network_feed(rows: Tensor, n: int) -> Feed:
    """Rows in up to four groups of MODES."""
    group = np.random.default_rng(n).permutation(np.arange(n) % 4)
    weights = [MODES[g].weight(size) for g, size in enumerate(np.bincount(group))]
    return {"input": rows[:n].numpy(), "group": group, "tracked_weight": np.array(weights, np.float32)[group]}


def test_a_file_answers_as_its_functions_and_as_torch(exported: tuple[nn.Module, bytes], rows: Tensor) -> None:
    network, model = exported
    operators, functions = session(model), session(model, operators=False)
    for n in (1, 2, 7, 32):
        values = network_feed(rows, n)
        answer = run(operators, values)
        np.testing.assert_allclose(answer, run(functions, values), atol=PARITY, rtol=0)
        groups = int(values["group"].max()) + 1
        with torch.no_grad(), use_statistics(network, MODES[:groups], torch.from_numpy(values["group"])):
            np.testing.assert_allclose(answer, network(rows[:n]).numpy(), atol=PARITY, rtol=0)
        other_ids = {**values, "group": n - 1 - values["group"]}
        np.testing.assert_array_equal(run(operators, other_ids), answer)


def test_a_group_of_a_file_answers_as_if_alone(exported: tuple[nn.Module, bytes], rows: Tensor) -> None:
    operators = session(exported[1])
    values = network_feed(rows, 32)
    together = run(operators, values)
    for g in range(4):
        mine = values["group"] == g
        alone = {name: value[mine] for name, value in values.items()} | {"group": np.zeros(mine.sum(), np.int64)}
        # Within a tolerance: ONNX Runtime's own layers sum in another order for another number of rows.
        np.testing.assert_allclose(together[mine], run(operators, alone), atol=GROUP_ALONE)


def test_the_operators_are_used_where_they_are_registered(rows: Tensor, tmp_path: Path) -> None:
    export_onnx(small_network(AugNorm2d), tmp_path / "m.onnx", example=rows, native="off")
    model = (tmp_path / "m.onnx").read_bytes()
    kinds = {}
    for operators in (True, False):
        session(model, operators=operators, optimized=tmp_path / "optimized.onnx")
        kinds[operators] = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert sorted(kind for kind in kinds[True] if "Norm" in kind) == ["AugNorm", "AugNormAddRelu", "AugNormRelu"]
    assert "Loop" not in kinds[True]
    assert kinds[False].count("Loop") == 3  # statistics, where a row wants them
    assert not any("Norm" in kind for kind in kinds[False])


def test_batch_file(rows: Tensor, tmp_path: Path) -> None:
    export_onnx(small_network(AugNorm2d), tmp_path / "m.onnx", example=rows, mode="batch", native="off")
    model = (tmp_path / "m.onnx").read_bytes()
    values: Feed = {"input": rows.numpy()}
    np.testing.assert_allclose(
        run(session(model), values), run(session(model, operators=False), values), atol=PARITY
    )
