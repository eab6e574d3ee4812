"""The Open Inference Protocol over HTTP: each answer against the network computed by hand, each refusal."""

from __future__ import annotations

import gzip
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import augserve
from augserve.service.body.parse import INLINE_BYTES, JSON
from augserve.service.v2.openapi import PATHS, add_examples
from tests.service.tiny import CLASSES, SHAPE, expected_logits, running, some_rows, write_model

TOLERANCE = 1e-5  # float32 sums of 64 values of order 1
INFER = "/v2/models/tiny/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def v2(model: Path) -> Iterator[httpx.Client]:
    with running(model, max_body_bytes=200_000, max_rows=64) as client:
        yield client


def body_of(rows: np.ndarray, **fields: Any) -> dict[str, Any]:
    flat = rows.ravel().tolist()
    return {"inputs": [{"name": "input", "shape": list(rows.shape), "datatype": "FP32", "data": flat}], **fields}


def binary_of(rows: np.ndarray, datatype: str = "FP32", **fields: Any) -> tuple[bytes, dict[str, str]]:
    """A request with a binary tensor: its body, and its headers, without a Content-Type."""
    tail = rows.tobytes()
    parameters = {"binary_data_size": len(tail)}
    tensor = {"name": "input", "shape": list(rows.shape), "datatype": datatype, "parameters": parameters}
    header = json.dumps({"inputs": [tensor], **fields}).encode()
    return header + tail, {LENGTH: str(len(header))}


def logits_of(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    (output,) = response.json()["outputs"]
    assert (output["name"], output["datatype"]) == ("logits", "FP32")
    return np.array(output["data"]).reshape(output["shape"])


def assert_refused(response: httpx.Response, status: int, code: str, words: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.json()["code"] == code
    assert words in response.json()["error"]
    assert len(response.json()["error"]) < 500


# --- what is here -----------------------------------------------------------------------------------------


def test_server_and_model_describe_themselves(v2: httpx.Client) -> None:
    assert v2.get("/v2").json() == {
        "name": "augserve",
        "version": augserve.__version__,
        "extensions": ["binary_tensor_data", "classification"],
    }
    described = {
        "name": "tiny",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, *SHAPE]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}],
    }
    assert v2.get("/v2/models/tiny").json() == described
    assert v2.get("/v2/models/tiny/versions/1").json() == described


@pytest.mark.parametrize(
    "path", ["health/live", "health/ready", "models/tiny/ready", "models/tiny/versions/1/ready", "models/tiny"]
)
def test_what_is_ready_answers_200(v2: httpx.Client, path: str) -> None:
    assert v2.get(f"/v2/{path}").status_code == 200


def test_what_drains_lives_but_is_not_ready(model: Path) -> None:
    with running(model) as client:
        client.service.drain()
        assert client.get("/v2/health/live").status_code == 200
        for path in ("health/ready", "models/tiny/ready", "models/tiny"):
            assert_refused(client.get(f"/v2/{path}"), 503, "not_ready", "draining")
        response = client.post(INFER, json=body_of(some_rows(1)))
        assert_refused(response, 503, "not_ready", "draining")
        assert response.headers["Retry-After"] == "1"


@pytest.mark.parametrize("path", ["models/other", "models/tiny/versions/2", "models/tiny/versions/x"])
def test_unknown_models_and_versions_are_404(v2: httpx.Client, path: str) -> None:
    for suffix in ("", "/ready"):
        assert_refused(v2.get(f"/v2/{path}{suffix}"), 404, "unknown_model")
    assert_refused(v2.post(f"/v2/{path}/infer", json=body_of(some_rows(1))), 404, "unknown_model")


# --- inference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "groups", "weights"),
    [
        ({}, [range(10)], [1]),
        ({"tracking": False}, [range(10)], [0]),
        ({"tracking": False, "batch_size": 4}, [range(4), range(4, 8), range(8, 10)], [0, 0, 0]),
        ({"tracking": False, "batch_size": 4, "remainder": "merge"}, [range(4), range(4, 10)], [0, 0]),
        ({"tracked_weight": 0.7, "batch_size": 5}, [range(5), range(5, 10)], [0.7, 0.7]),
        ({"prior": 8, "batch_size": 8}, [range(8), range(8, 10)], [0.5, 0.8]),
    ],
)
def test_logits_are_those_of_the_asked_statistics(
    v2: httpx.Client, parameters: dict[str, Any], groups: list[range], weights: list[float]
) -> None:
    rows = some_rows(10)
    expected = expected_logits(rows, [list(group) for group in groups], weights)
    response = v2.post(INFER, json=body_of(rows, parameters=parameters, id="7"))
    np.testing.assert_allclose(logits_of(response), expected, rtol=0, atol=TOLERANCE)
    answer = response.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "1", "7")
    used = answer["parameters"]
    assert json.loads(used["groups"]) == [len(group) for group in groups]
    assert json.loads(used["tracked_weight"]) == pytest.approx(weights)
    assert (used["dropped"], used["remainder"]) == ("[]", parameters.get("remainder", "own"))


def test_dropped_rows_and_warnings_are_told(v2: httpx.Client) -> None:
    rows = some_rows(3)
    response = v2.post(INFER, json=body_of(rows, parameters={"prior": 1, "batch_size": 2, "remainder": "drop"}))
    assert logits_of(response).shape == (2, 4)
    assert response.json()["parameters"]["dropped"] == "[2]"
    assert response.json()["parameters"]["mode"] == "blend"
    response = v2.post(INFER, json=body_of(rows, parameters={"tracking": False, "batch_size": 2}))
    (warning,) = json.loads(response.json()["parameters"]["warnings"])
    assert "1 of 2 statistics groups have one row" in warning


@pytest.mark.parametrize(("datatype", "dtype"), [("FP32", "<f4"), ("FP16", "<f2"), ("UINT8", "u1")])
def test_binary_tensors_go_in_and_out(v2: httpx.Client, datatype: str, dtype: str) -> None:
    rows = np.abs(some_rows(6) * 50).astype(dtype)
    outputs = [
        {"name": "logits"},
        {"name": "labels"},
        {"name": "probabilities", "parameters": {"binary_data": False}},
    ]
    body, headers = binary_of(
        rows, datatype, outputs=outputs, parameters={"binary_data_output": True, "tracking": False}
    )
    response = v2.post(INFER, content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    answer, tail = json.loads(response.content[:length]), response.content[length:]
    expected = expected_logits(rows, [list(range(6))], [0])
    np.testing.assert_allclose(np.frombuffer(tail[:96], "<f4").reshape(6, 4), expected, rtol=1e-4, atol=1e-4)
    assert tail[96:] == b"".join(b"\3\0\0\0" + CLASSES[best].encode() for best in expected.argmax(axis=1))
    assert [output["name"] for output in answer["outputs"]] == ["logits", "labels", "probabilities"]
    assert sum(answer["outputs"][2]["data"]) == pytest.approx(6)


def test_json_and_binary_answers_have_the_same_bits(v2: httpx.Client) -> None:
    rows = some_rows(4)
    in_json = logits_of(v2.post(INFER, json=body_of(rows))).astype(np.float32)
    body, headers = binary_of(rows, parameters={"binary_data_output": True})
    response = v2.post(INFER, content=body, headers=headers)
    assert response.content[int(response.headers[LENGTH]) :] == in_json.tobytes()


def test_a_large_body_is_answered_like_a_small_one(v2: httpx.Client) -> None:
    rows = some_rows(64)
    body, headers = binary_of(rows, outputs=[{"name": "logits", "parameters": {"binary_data": True}}])
    assert len(body) < INLINE_BYTES[JSON] < len(json.dumps(body_of(rows[:40])))
    tail = v2.post(INFER, content=body, headers=headers).content[-64 * 16 :]
    expected = expected_logits(rows, [list(range(64))], [1])
    np.testing.assert_allclose(np.frombuffer(tail, "<f4").reshape(64, 4), expected, rtol=0, atol=TOLERANCE)
    response = v2.post(INFER, json=body_of(rows[:40]))
    np.testing.assert_allclose(logits_of(response), expected[:40], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies_are_answered(v2: httpx.Client, encoding: str, compress: Any) -> None:
    rows = some_rows(3)
    body, headers = binary_of(rows)
    plain = v2.post(INFER, content=body, headers=headers).json()
    packed = compress(body)
    headers |= {"Content-Encoding": encoding, "Accept-Encoding": "gzip"}
    response = v2.post(INFER, content=packed, headers=headers)
    assert response.json() == plain
    assert "Content-Encoding" not in response.headers
    cut = v2.post(INFER, content=packed[:-5], headers=headers)
    assert_refused(cut, 400, "malformed_request", "cut off")
    bomb = v2.post(INFER, content=compress(bytes(10**7)), headers=headers)
    assert_refused(bomb, 413, "payload_too_large", "at most 200000 bytes when decompressed")


def test_refusals_have_their_status(v2: httpx.Client) -> None:
    rows = some_rows(1)
    body, headers = binary_of(rows)

    def refused(status: int, code: str, words: str, **how: Any) -> None:
        assert_refused(v2.post(INFER, **how), status, code, words)

    refused(400, "malformed_request", "JSON", content=b"")
    refused(400, "malformed_request", LENGTH, content=body, headers={LENGTH: "9" * 9})
    refused(400, "malformed_request", "got 764", content=body[:-4], headers=headers)
    refused(413, "payload_too_large", "200000 bytes", content=b" " * 200_001)
    many, many_headers = binary_of(some_rows(65))
    refused(413, "payload_too_large", "at most 64 rows", content=many, headers=many_headers)
    refused(415, "unsupported_media_type", "gzip", content=body, headers=headers | {"Content-Encoding": "br"})
    refused(422, "invalid_input", "expected shape [N, 3, 8, 8]", json=body_of(rows[:, :2]))
    refused(422, "invalid_setting", "batch_size, remainder", json=body_of(rows, parameters={"batchsize": 1}))
    refused(422, "impossible_statistics", "none of the 1", json=body_of(rows, parameters=DROP))
    rows[0, 0, 0, 0] = np.nan
    body, headers = binary_of(rows)
    refused(422, "invalid_input", "row 0 holds NaN", content=body, headers=headers)
    huge = np.full((1, *SHAPE), 3e38, np.float32)
    refused(422, "invalid_input", "finite logits", json=body_of(huge, parameters={"tracking": True}))
    response = v2.get(INFER)
    assert_refused(response, 405, "method_not_allowed", "POST")


DROP = {"batch_size": 2, "remainder": "drop"}
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
GOOD, GOOD_HEADERS = binary_of(some_rows(1))
TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8)


@SETTINGS
@given(
    body=st.binary(max_size=60) | st.binary(max_size=4).map(lambda more: GOOD + more) | st.just(GOOD),
    length=st.none() | TEXT | st.just(GOOD_HEADERS[LENGTH]) | st.integers(-2, 2000).map(str),
    encoding=st.none() | TEXT | st.sampled_from(["gzip", "deflate"]),
)
def test_any_bytes_are_answered_or_refused(
    v2: httpx.Client, body: bytes, length: str | None, encoding: str | None
) -> None:
    headers = {LENGTH: length, "Content-Encoding": encoding}
    response = v2.post(INFER, content=body, headers={name: value for name, value in headers.items() if value})
    assert response.status_code in {200, 400, 413, 415, 422}, response.text
    assert response.status_code == 200 or set(response.json()) == {"error", "code"}


def test_the_example_of_the_documentation_is_answered(v2: httpx.Client) -> None:
    document = v2.get("/openapi.json").json()
    add_examples(document, "tiny", "1", v2.service.models.get().manifest)
    for path in PATHS:
        operation = document["paths"][path]["post"]
        names = {parameter["name"]: parameter["example"] for parameter in operation["parameters"]}
        example = operation["requestBody"]["content"]["application/json"]["example"]
        expected = expected_logits(np.zeros((1, *SHAPE)), [[0]], [1])
        np.testing.assert_allclose(logits_of(v2.post(path.format(**names), json=example)), expected, atol=TOLERANCE)


# --- the repository ---------------------------------------------------------------------------------------


def test_the_index_lists_every_version(v2: httpx.Client) -> None:
    listed = [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
    assert v2.get("/v2/repository/index").json() == listed
    assert v2.post("/v2/repository/index").json() == listed
    assert v2.post("/v2/repository/index", json={"ready": True}).json() == listed
    assert_refused(v2.post("/v2/repository/index", json={"ready": 1}), 422, "invalid_setting", "true or false")
    assert_refused(v2.post("/v2/repository/index", json={"x": 1}), 422, "invalid_setting", "choose from: ready")
    assert_refused(v2.post("/v2/repository/index", content=b"{"), 400, "malformed_request")
    assert_refused(v2.post("/v2/repository/index", content=bytes(2**17)), 413, "payload_too_large")


def test_models_are_not_loaded_where_control_is_off(v2: httpx.Client) -> None:
    for action in ("load", "unload"):
        assert_refused(v2.post(f"/v2/repository/models/tiny/{action}"), 404, "not_found")
    assert v2.get("/v2/models/tiny/ready").status_code == 200


def test_models_come_and_go_by_request(tmp_path: Path, model: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / "a" / version).mkdir(parents=True)
        shutil.copy(model, tmp_path / "a" / version / "model.onnx")
    with running(tmp_path, repository_control=True, repository_poll_s=0) as client:
        assert "model_repository" in client.get("/v2").json()["extensions"]
        assert client.get("/v2/models/a").json()["versions"] == ["1", "2"]
        ready = client.get("/v2/models/a/ready")
        assert ready.json() == {"name": "a", "ready": True}
        request = body_of(some_rows(1))
        assert client.post("/v2/models/a/versions/1/infer", json=request).json()["model_version"] == "1"
        assert client.post("/v2/models/a/infer", json=request).json()["model_version"] == "2"

        unload = client.post("/v2/repository/models/a/unload", json={"parameters": {"unload_dependents": False}})
        assert (unload.status_code, unload.json()) == (200, {})
        assert_refused(client.get("/v2/models/a/ready"), 404, "unknown_model")
        assert {one["state"] for one in client.get("/v2/repository/index").json()} == {"UNAVAILABLE"}
        assert client.post("/v2/repository/index", json={"ready": True}).json() == []
        assert_refused(client.post("/v2/repository/models/a/unload"), 404, "unknown_model")

        assert client.post("/v2/repository/models/a/load", content=b"").status_code == 200
        assert client.get("/v2/models/a/ready").status_code == 200
        write_model(tmp_path / "b.onnx")
        assert client.post("/v2/repository/models/b/load", json={}).status_code == 200
        assert client.post("/v2/models/b/infer", json=request).json()["model_name"] == "b"

        refused = client.post("/v2/repository/models/a/load", json={"parameters": {"config": "{}"}})
        assert_refused(refused, 422, "invalid_setting", "unknown parameter 'config'")
        assert_refused(client.post("/v2/repository/models/none/load"), 404, "unknown_model")


def test_a_version_that_fails_leaves_the_old_one_serving(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "a.onnx"
    shutil.copy(model, file)
    with running(tmp_path, repository_control=True, repository_poll_s=0) as client:
        file.write_bytes(b"not a model")
        assert_refused(client.post("/v2/repository/models/a/load"), 422, "invalid_setting", "was not loaded")
        response = client.post("/v2/models/a/infer", json=body_of(some_rows(1)))
        expected = expected_logits(some_rows(1), [[0]], [1])
        np.testing.assert_allclose(logits_of(response), expected, rtol=0, atol=TOLERANCE)
