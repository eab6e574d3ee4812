"""The OpenAPI file and the HTTP reference of the documentation are what the service says of itself."""

from __future__ import annotations

import json
import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from augserve.service.app import build_app
from augserve.service.http.errors import TABLE
from augserve.service.lifecycle import Service
from augserve.service.settings import Settings

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "docs" / "reference"
STALE = "the documentation is not current: run scripts/openapi"
CONTROL = "/v2/repository/models/"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return json.loads((REFERENCE / "openapi.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def page() -> str:
    return (REFERENCE / "http.md").read_text("utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("openapi_script", str(ROOT / "scripts" / "openapi"))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def without_examples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_examples(inner) for name, inner in value.items() if name != "example"}
    return [without_examples(inner) for inner in value] if isinstance(value, list) else value


def test_file_is_what_the_application_says(document: dict[str, Any]) -> None:
    app = build_app(Service(Settings(model="any.onnx", repository_control=True)))
    assert document == json.loads(json.dumps(app.openapi())), STALE


def test_a_server_says_the_same_with_examples(document: dict[str, Any], server: httpx.Client) -> None:
    said = without_examples(server.get("/openapi.json").json())
    described = said["paths"]["/predict"]["post"].pop("description")
    written = without_examples(document)
    assert described.startswith(written["paths"]["/predict"]["post"].pop("description"))
    control = [path for path in written["paths"] if path.startswith(CONTROL)]
    assert len(control) == 2
    for path in control:
        del written["paths"][path]
    assert said == written


def test_script_writes_the_same_in_any_environment(
    document: dict[str, Any], script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"AUGSERVE_{name.upper()}", "1")
    monkeypatch.delenv("AUGSERVE_API_KEYS_FILE")
    text = script.as_text(script.describe_service())
    assert text == (REFERENCE / "openapi.json").read_text("utf-8"), STALE


def test_page_is_current(document: dict[str, Any], page: str, script: ModuleType) -> None:
    assert script.fill(page, document) == page, STALE


def test_what_is_not_current_is_made_anew_and_nothing_else(
    document: dict[str, Any], page: str, script: ModuleType
) -> None:
    emptied = re.sub(r"(scripts/openapi: \w+ -->\n).*?(<!-- end)", r"\1\2", page, flags=re.DOTALL)
    assert len(emptied) < len(page) - 1000
    assert script.fill(emptied, document) == page
    with pytest.raises(SystemExit, match="expected the marks of"):
        script.fill(page.replace("openapi: errors", "openapi: mistakes"), document)


def test_page_names_every_path_and_status(document: dict[str, Any], page: str) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            (line,) = [line for line in page.splitlines() if line.startswith(f"| `{method.upper()} {path}` |")]
            statuses = line.split(" | ")[-1].removesuffix(" |").split(", ")
            assert statuses == sorted(operation["responses"])


def test_every_code_and_setting_is_explained_by_hand(document: dict[str, Any], page: str) -> None:
    detail = page.partition("In detail:")[2]
    for refusal in TABLE.values():
        if refusal.status not in (401, 403):  # of keys: on a page of their own
            assert f"| `{refusal.code}` |" in detail
    schema = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    by_hand = re.sub(r"<!-- made.*?<!-- end -->", "", page, flags=re.DOTALL)
    for name in schema["properties"]:
        assert f"`{name}`" in by_hand
