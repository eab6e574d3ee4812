"""schemathesis, in an environment of its own, asks what the OpenAPI document tells: the answers are as it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.tiny import running

SCHEMATHESIS = "schemathesis==4.32.5"
# All of its checks, but for this one: a schema cannot say how many numbers a row has, nor that settings stand in
# the address of an array alone, so that requests that fit it may be refused.
UNCHECKED = "positive_data_acceptance"


@pytest.fixture(scope="module")
def report(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What it found, beside the number of the document's operations."""
    folder = tmp_path_factory.mktemp("schemathesis")
    site, models = folder / "site", folder / "models"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site), SCHEMATHESIS]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    models.mkdir()
    (models / "tiny.onnx").write_bytes(model.read_bytes())
    with running(models, max_body_bytes=200_000, repository_control=True, repository_poll_s=0) as client:
        # -S: nothing of this environment is seen.
        program = "import schemathesis.cli; schemathesis.cli.schemathesis()"
        command = [sys.executable, "-S", "-c", program, "run", f"{client.base_url}/openapi.json"]
        command += ["--max-examples", "20", "--seed", "1", "--no-color", "--generation-database", "none"]
        command += ["--exclude-checks", UNCHECKED, "--report", "json", "--report-json-path", "report.json"]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        paths = client.get("/openapi.json").json()["paths"]
    assert (folder / "report.json").is_file(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return {**found, "text": done.stdout, "expected": sum(len(methods) for methods in paths.values())}


@pytest.mark.slow
@pytest.mark.network
def test_the_server_does_what_its_document_says(report: dict[str, Any]) -> None:
    failures = [(one["code"], operation) for one in report["failures"] for operation in one["operations"]]
    assert failures == [], report["text"]
    assert report["errors"] == []


@pytest.mark.slow
@pytest.mark.network
def test_every_operation_was_asked(report: dict[str, Any]) -> None:
    assert report["complete"]
    assert report["operations"]["tested"] == report["expected"] >= 18
    for path in ("/predict", "/v2/models/{model}/infer"):
        assert report["valid_rates"][f"POST {path}"]["examples"]["accepted"] == 1


def test_allow_names_every_method_of_a_path(server: httpx.Client) -> None:
    allowed = server.put("/v2/repository/index").headers["Allow"]
    assert {method.strip() for method in allowed.split(",")} >= {"GET", "POST"}
