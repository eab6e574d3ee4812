"""tritonclient[http], unchanged and in an environment of its own, gets what it asks a server for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import augserve
from tests.service.tiny import CLASSES, expected_logits, running, some_rows

pytestmark = [pytest.mark.slow, pytest.mark.network]

CLIENT = "tritonclient[http]==2.73.0"  # its ml-dtypes and the exporter's cannot be installed together
TOLERANCE = 1e-5  # float32 sums of 64 values of order 1
ROWS = some_rows(10)
ALL = [list(range(10))]


@pytest.fixture(scope="module")
def seen(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("triton")
    site = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site), CLIENT]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    np.savez(folder / "rows.npz", FP32=ROWS, FP16=ROWS.astype(np.float16), UINT8=bytes_like(ROWS))
    (folder / "models" / "tiny" / "1").mkdir(parents=True)
    shutil.copy(model, folder / "models" / "tiny" / "1" / "model.onnx")
    with running(folder / "models", repository_control=True, repository_poll_s=0) as client:
        # -S: nothing of this environment is seen.
        calls = Path(__file__).with_name("triton_calls.py")
        address = f"{client.base_url.host}:{client.base_url.port}"
        command = [sys.executable, "-S", str(calls), address, str(folder / "rows.npz")]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def bytes_like(rows: np.ndarray) -> np.ndarray:
    return (50 * np.abs(rows)).astype(np.uint8)


def assert_logits(came: dict[str, Any], rows: np.ndarray, groups: list[list[int]], weights: list[float]) -> None:
    assert "error" not in came, came
    expected = expected_logits(rows, groups, weights)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(came["logits"], expected, rtol=0, atol=TOLERANCE * scale)


def test_liveness_readiness_and_metadata(seen: dict[str, Any]) -> None:
    assert (seen["live"], seen["ready"]) == (True, True)
    assert (seen["model_ready"], seen["not_ready"]) == ([True, True], [False, False])
    assert (seen["server"]["name"], seen["server"]["version"]) == ("augserve", augserve.__version__)
    assert "model_repository" in seen["server"]["extensions"]
    assert seen["model"]["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert seen["model"]["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}]
    assert seen["model"]["versions"] == ["1"]


def test_binary_tensors_of_each_datatype(seen: dict[str, Any]) -> None:
    for datatype, rows in (("FP32", ROWS), ("FP16", ROWS.astype(np.float16)), ("UINT8", bytes_like(ROWS))):
        assert_logits(seen[datatype], rows.astype(np.float32), ALL, [1])
    assert seen["FP32"]["response"]["id"] == "seven"
    assert seen["FP32"]["response"]["model_version"] == "1"
    assert_logits(seen["version"], ROWS, ALL, [1])


def test_json_tensors_and_several_outputs(seen: dict[str, Any]) -> None:
    came = seen["json"]
    assert_logits(came, ROWS, ALL, [1])
    expected = expected_logits(ROWS, ALL, [1])
    exponentials = np.exp(expected)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(came["probabilities"], probabilities, rtol=0, atol=TOLERANCE)
    assert came["labels"] == [CLASSES[best] for best in expected.argmax(axis=1)]


def test_parameters_choose_the_statistics(seen: dict[str, Any]) -> None:
    assert_logits(seen["batch"], ROWS, [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]], [0, 0])
    assert json.loads(seen["batch"]["response"]["parameters"]["groups"]) == [4, 6]
    assert_logits(seen["prior"], ROWS, ALL, [0.5])
    assert_logits(seen["blend"], ROWS, [list(range(5)), list(range(5, 10))], [0.25, 0.25])
    assert seen["blend"]["response"]["parameters"]["mode"] == "blend"


def test_classification_names_the_best_classes(seen: dict[str, Any]) -> None:
    expected = expected_logits(ROWS, ALL, [1])
    for texts, logits in zip(seen["classification"]["logits"], expected, strict=True):
        parts = [text.split(":") for text in texts]
        order = np.argsort(-logits)[:2]
        assert [(int(index), label) for _, index, label in parts] == [(k, CLASSES[k]) for k in order]
        assert [float(value) for value, _, _ in parts] == pytest.approx(logits[order], abs=TOLERANCE)


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_compressed_requests_have_the_same_answer(seen: dict[str, Any], name: str) -> None:
    assert seen[name]["logits"] == seen["FP32"]["logits"]


def test_requests_at_the_same_time_and_asyncio(seen: dict[str, Any]) -> None:
    for came in seen["async"]:
        assert_logits(came, ROWS, ALL, [1])
    assert [len(json.loads(came["response"]["parameters"]["groups"])) for came in seen["async"]] == [10, 5, 4, 3]
    assert_logits(seen["aio"], ROWS, ALL, [0])


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("unknown_model", "404", "no model 'other'"),
        ("unknown_version", "404", "has no version '9'"),
        ("wrong_shape", "422", "expected shape [N, 3, 8, 8]; got [10, 2, 8, 8]"),
        ("bad_parameter", "422", "unknown parameter of the request 'batchsize'; choose from: batch_size"),
        ("bad_value", "422", "tracking"),
        ("bad_output", "422", "choose from: logits, probabilities, labels"),
        ("load_unknown", "404", "no model 'other'"),
        ("load_config", "422", "unknown parameter 'config'"),
    ],
)
def test_errors_reach_the_caller_in_words(seen: dict[str, Any], name: str, status: str, words: str) -> None:
    assert seen[name]["status"] == status
    assert words in seen[name]["error"]


def test_models_are_unloaded_and_loaded(seen: dict[str, Any]) -> None:
    assert seen["index"] == [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
    ready, index, refused = seen["unloaded"]
    assert (ready, index[0]["state"], refused["status"]) == (False, "UNAVAILABLE", "404")
    ready, came = seen["loaded"]
    assert ready
    assert came["logits"] == seen["FP32"]["logits"]
