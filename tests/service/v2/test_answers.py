"""Settings and answers of the Open Inference Protocol against bytes that are unpacked by hand."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest

from augserve.service.v2.metadata import model_metadata, server_metadata
from tests.service.v2.cases import LOGITS, MANIFEST, SIZES, encode, parse, row


def test_parameters_become_settings() -> None:
    request = parse({"inputs": [row()], "parameters": {"batch_size": 3, "tracking": False, "remainder": "merge"}})
    settings = request.settings
    assert (settings.batch_size, settings.tracking, settings.remainder, settings.blend) == (3, False, "merge", None)
    for name, value in (("prior", 16), ("tracked_weight", 0.25)):
        blend = parse({"inputs": [row()], "parameters": {name: value}}).settings.blend
        assert blend is not None
        assert getattr(blend, name) == value


def test_the_default_answer_is_the_logits_in_json() -> None:
    document, tail = encode(
        parse({"inputs": [row()], "id": "a\u00fc", "model_name": "tiny", "model_version": None})
    )
    assert document == {
        "model_name": "tiny",
        "model_version": "3",
        "id": "a\u00fc",
        "parameters": {"mode": "batch"},
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": document["outputs"][0]["data"]}
        ],
    }
    assert tail == b""
    assert np.array_equal(np.array(document["outputs"][0]["data"], np.float32), LOGITS.ravel())
    assert "id" not in encode(parse({"inputs": [row()], "outputs": []}))[0]


def test_outputs_follow_the_json_part_in_their_order() -> None:
    outputs = [
        {"name": "labels", "parameters": {"binary_data": True}},
        {"name": "probabilities", "parameters": {"binary_data": False}},
        {"name": "logits"},
    ]
    request = parse({"inputs": [row()], "outputs": outputs, "parameters": {"binary_data_output": True}})
    document, tail = encode(request)
    labels, probabilities, logits = document["outputs"]
    assert (labels["datatype"], labels["shape"], labels["parameters"]) == ("BYTES", [2], {"binary_data_size": 14})
    assert tail[:14] == struct.pack("<I3sI3s", 3, b"cow", 3, b"bee")  # of equal logits the first class counts
    assert struct.unpack("<6f", tail[14:]) == tuple(LOGITS.ravel())
    assert logits["parameters"] == {"binary_data_size": 24}
    assert "data" not in logits
    assert "parameters" not in probabilities
    expected = [math.exp(z) / sum(math.exp(float(other)) for other in line) for line in LOGITS for z in line]
    assert probabilities["data"] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", ["logits", "probabilities"])
@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 2), (9, 3)])
def test_classification_is_value_index_and_label_of_the_largest(name: str, count: int, kept: int) -> None:
    plain, _ = encode(parse({"inputs": [row()], "outputs": [{"name": name}]}))
    values = np.array(plain["outputs"][0]["data"], np.float32).reshape(2, 3)
    wanted = [{"name": name, "parameters": {"classification": count}}]
    (output,) = encode(parse({"inputs": [row()], "outputs": wanted}))[0]["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, kept])
    order = [[2, 0, 1], [1, 2, 0]]
    for index, text in enumerate(output["data"]):
        value, k, label = text.split(":")
        line, place = divmod(index, kept)
        assert int(k) == order[line][place]
        assert label == MANIFEST.classes[int(k)]
        assert np.float32(value) == values[line, int(k)]


def test_parameters_of_an_answer_are_text_numbers_or_booleans() -> None:
    used = {
        "mode": "batch",
        "groups": [4, 2],
        "tracked_weight": [0.0, 0.5],
        "warnings": ["a: \u00e9"],
        "dropped": [],
    }
    parameters = encode(parse({"inputs": [row()]}), **used)[0]["parameters"]
    assert all(isinstance(value, str) for value in parameters.values())
    assert {name: json.loads(value) for name, value in parameters.items() if name != "mode"} == {
        name: value for name, value in used.items() if name != "mode"
    }


def test_metadata_name_what_is_taken_and_given() -> None:
    assert model_metadata("tiny", ["1", "2"], MANIFEST) == {
        "name": "tiny",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 2, 2]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert model_metadata("tiny", [], SIZES)["inputs"][0]["shape"] == [-1, 1, -1, -1]
    assert ("model_repository" in server_metadata(repository_control=True)["extensions"]) is True
    assert ("model_repository" in server_metadata(repository_control=False)["extensions"]) is False
