"""The documentation of POST /v2/models/MODEL/infer: what FastAPI cannot tell from a handler that reads bytes."""

from __future__ import annotations

import math
from typing import Any

from augserve.manifest import Manifest
from augserve.service.v2.metadata import input_name
from augserve.service.v2.request import PARAMETERS
from augserve.service.v2.tensors import DATATYPES
from augserve.statistics import REMAINDERS

PATHS = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
MAX_EXAMPLE_VALUES = 4096  # a longer list hides the rest of the page

_BINARY_SIZE = {"type": "object", "properties": {"binary_data_size": {"type": "integer", "minimum": 1}}}
_PARAMETER_TYPES: dict[str, dict[str, Any]] = {
    "batch_size": {"type": "integer", "minimum": 1},
    "remainder": {"type": "string", "enum": list(REMAINDERS)},
    "tracking": {"type": "boolean"},
    "tracked_weight": {"type": "number", "minimum": 0, "maximum": 1},
    "prior": {"type": "number", "minimum": 0},
    "binary_data_output": {"type": "boolean"},
}
_INPUT = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "parameters": _BINARY_SIZE,
        "data": {"type": "array", "items": {}},
    },
    "required": ["name", "shape", "datatype"],
    "additionalProperties": False,
}
_OUTPUT = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "parameters": {
            "type": "object",
            "properties": {
                "binary_data": {"type": "boolean"},
                "classification": {"type": "integer", "minimum": 1},
            },
            "additionalProperties": False,
        },
    },
    "required": ["name"],
    "additionalProperties": False,
}
_BODY = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "parameters": {
            "type": "object",
            "properties": {name: _PARAMETER_TYPES[name] for name in PARAMETERS},
            "additionalProperties": False,
        },
        "inputs": {"type": "array", "items": _INPUT, "minItems": 1, "maxItems": 1},
        "outputs": {"type": "array", "items": _OUTPUT},
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
    },
    "required": ["inputs"],
    "additionalProperties": False,
}
_BYTES = {"schema": {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}}

INFER: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}},
    "responses": {
        "200": {
            "description": "outputs, in JSON or behind it",
            "content": {"application/json": {"schema": {"type": "object"}}, "application/octet-stream": _BYTES},
        }
    },
}


def add_examples(document: dict[str, Any], model: str, version: str, manifest: Manifest) -> None:
    """Put a request that a served model answers into an OpenAPI document, where its rows are short enough."""
    values = math.prod(manifest.shape)
    if values > MAX_EXAMPLE_VALUES:
        return
    tensor = {"name": input_name(manifest), "shape": [1, *manifest.shape], "datatype": "FP32", "data": [0] * values}
    parameters = {"tracking": True} if "tracked" in manifest.modes else {}
    for path in PATHS:
        operation = document["paths"][path]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        content["example"] = {"inputs": [tensor], "parameters": parameters}
        for parameter in operation["parameters"]:
            parameter["example"] = {"model": model, "version": version}[parameter["name"]]
