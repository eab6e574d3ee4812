"""The documentation: what it shows works when pasted."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import httpx

from tests.service.tiny import running, write_model


def test_examples_are_answered(server: httpx.Client) -> None:
    document = server.get("/openapi.json").json()
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    pasted = server.post("/predict", json=content["application/json"]["example"])
    assert pasted.status_code == 200, pasted.text
    picture = base64.b64decode(content["application/json"]["example"]["instances"][0]["b64"])
    form = server.post(
        "/predict",
        data=content["multipart/form-data"]["example"],
        files=[("file", picture), ("file", picture)],
    )
    assert form.status_code == 200, form.text


def test_command_of_the_docs_is_the_form(server: httpx.Client) -> None:
    description = server.get("/openapi.json").json()["paths"]["/predict"]["post"]["description"]
    picture = base64.b64decode(re.search(r"echo (\S+) \| base64 -d > example.png", description)[1])
    fields = dict(re.findall(r"-F (\w+)=(\w+)", description))
    assert description.count("-F file=@example.png") == 2
    files = [("file", picture), ("file", picture)]
    assert server.post("/predict", data=fields, files=files).status_code == 200


def test_model_without_preprocessing_shows_numbers(tmp_path: Path) -> None:
    with running(write_model(tmp_path / "bare.onnx", preprocessing=None)) as client:
        operation = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
        assert list(operation["requestBody"]["content"]) == ["application/json", "application/octet-stream"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        assert client.post("/predict", json=example).status_code == 200


def test_document_is_whole(server: httpx.Client) -> None:
    assert server.get("/docs").status_code == 200
    document = server.get("/openapi.json").json()
    text = server.get("/openapi.json").text
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in document["components"]["schemas"]
    operation = document["paths"]["/predict"]["post"]
    assert {"200", "400", "401", "403", "404", "413", "415", "422", "429", "503", "504"} == set(
        operation["responses"]
    )
    json_schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(json_schema["properties"]) == {
        "instances", "model", "batch_size", "remainder", "tracking", "blend", "top_k", "return", "compare",
    }  # fmt: skip
    assert json_schema["required"] == ["instances"]
