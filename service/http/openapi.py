"""The documentation of POST /predict: the body's schema, and examples that the served model answers."""

from __future__ import annotations

import base64
import copy
import io
from typing import Any

from PIL import Image

from augserve.manifest import Manifest
from augserve.service.http.errors import TABLE
from augserve.service.lifecycle import Service
from augserve.service.schemas import ErrorBody, PredictSettings
from augserve.service.v2.openapi import add_examples

PREDICT_DESCRIPTION = """Predict rows, each normalised by tracked statistics or by its own statistics group.

Rows are nested numbers (already preprocessed, C x H x W) or encoded images (PNG, JPEG, WebP), which the
server preprocesses as the model's file says. A form takes images in fields named `file`, settings as text.
"""


def _responses(statuses: set[int]) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of the given statuses, from the table of errors."""
    codes = {status: [row.code for row in TABLE.values() if row.status == status] for status in statuses}
    return {status: {"model": ErrorBody, "description": " or ".join(codes[status])} for status in sorted(statuses)}


RESPONSES = _responses({row.status for row in TABLE.values()})
NOT_READY = _responses({503})
NO_MODEL = _responses({404, 503})


OF_ARRAYS = "Beside a body in NumPy's format alone; other bodies hold their settings."
WEIGHTS: dict[str, dict[str, Any]] = {
    "tracked_weight": {"type": "number", "minimum": 0, "maximum": 1},
    "prior": {"type": "number", "minimum": 0},
}


def describe(document: dict[str, Any], service: Service) -> dict[str, Any]:
    """Return the OpenAPI document with the body of POST /predict, and examples once a model is there.

    Args:
        document: what FastAPI wrote, left unchanged.
        service: gives the model and the address.
    """
    document = copy.deepcopy(document)
    operation = document["paths"]["/predict"]["post"]
    properties, definitions = _settings_schema()
    document.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
    image = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    b64 = {"type": "object", "properties": {"b64": {"type": "string"}}, "required": ["b64"]}
    instances = {"type": "array", "items": {"anyOf": [{"type": "array", "items": {}}, b64]}, "minItems": 1}
    json_body: dict[str, Any] = {"schema": _body({"instances": instances}, properties)}
    form_fields = {
        "file": {"type": "array", "items": image, "minItems": 1},
        **WEIGHTS,
    }
    form_body: dict[str, Any] = {"schema": _body(form_fields, properties)}
    npy = {"schema": {"type": "string", "format": "binary", "description": "rows as an array in NumPy's format"}}
    content: dict[str, Any] = {"application/json": json_body, "application/octet-stream": npy}
    # An array has no room for settings: they stand in the address.
    operation["parameters"] = [
        {"name": name, "in": "query", "required": False, "schema": _given(schema), "description": OF_ARRAYS}
        for name, schema in {**properties, **WEIGHTS}.items()
        if name != "blend"
    ]
    open_versions = service.models.predictors()
    images = True
    if open_versions:
        manifest = open_versions[0].manifest
        images = manifest.preprocessing is not None
        add_examples(document, open_versions[0].name, open_versions[0].version, manifest)
        settings = _example_settings(manifest)
        json_body["example"] = {"instances": _example_instances(manifest), **settings}
        if manifest.preprocessing is not None:
            form_body["example"] = {name: str(value).lower() for name, value in settings.items()}
            operation["description"] += _example_command(service, settings)
    if images:
        content["multipart/form-data"] = form_body
    operation["requestBody"] = {"required": True, "content": content}
    return document


def _settings_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the properties of the settings and the schemas that they refer to."""
    schema = PredictSettings.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
    return schema["properties"], schema.get("$defs", {})


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a setting that is there: without null, which a text cannot be, and without a default."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    return {name: value for name, value in kinds[0].items() if name not in ("default", "title")}


def _body(first: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    required = next(iter(first))
    properties = {**first, **settings}
    return {"type": "object", "properties": properties, "required": [required], "additionalProperties": False}


def _example_settings(manifest: Manifest) -> dict[str, Any]:
    return {"batch_size": 2, "tracking": "tracked" in manifest.modes, "top_k": 1}


def _example_instances(manifest: Manifest) -> list[Any]:
    """Return two rows: small pictures, or zeros where the model takes numbers only."""
    if manifest.preprocessing is not None:
        return [{"b64": _example_picture(shade)} for shade in (64, 192)]
    row: Any = 0.0
    for size in reversed(manifest.shape):
        row = [row] * size
    return [row, row]


def _example_picture(shade: int) -> str:
    data = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 128, 255 - shade)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode("ascii")


def _example_command(service: Service, settings: dict[str, Any]) -> str:
    """Return shell lines that make a picture and send it twice in a form."""
    form = " ".join(f"-F {name}={str(value).lower()}" for name, value in settings.items())
    url = f"http://{service.settings.host}:{service.settings.port}/predict"
    picture = f"echo {_example_picture(64)} | base64 -d > example.png"
    return f"\n```\n{picture}\ncurl -F file=@example.png -F file=@example.png {form} {url}\n```\n"
