"""The documentation of POST /v2/models/MODEL/infer: what FastAPI cannot tell from a handler that reads bytes."""

from __future__ import annotations

import math
from typing import Any

from augserve.manifest import Manifest
from augserve.service.v2.metadata import input_name
from augserve.service.v2.request import PARAMETERS
from augserve.service.v2.tensors import DATATYPES
from augserve.statistics import REMAINDERS

TAG = "Open Inference Protocol v2"
PATHS = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
MAX_EXAMPLE_VALUES = 4096  # a longer list hides the rest of the page

# null counts as left out wherever these schemas allow it.
_BINARY_SIZE = {
    "type": ["object", "null"],
    "properties": {"binary_data_size": {"type": "integer", "minimum": 1}},
    "additionalProperties": False,
}
_PARAMETER_TYPES: dict[str, dict[str, Any]] = {
    "batch_size": {"type": ["integer", "null"], "minimum": 1},
    "remainder": {"type": "string", "enum": list(REMAINDERS)},
    "tracking": {"type": ["boolean", "null"]},
    "tracked_weight": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "prior": {"type": ["number", "null"], "minimum": 0},
    "binary_data_output": {"type": "boolean"},
}
_INPUT = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "parameters": _BINARY_SIZE,
        "data": {"type": ["array", "null"], "items": {}},
    },
    "required": ["name", "shape", "datatype"],
    "additionalProperties": False,
}
_OUTPUT = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "parameters": {
            "type": ["object", "null"],
            "properties": {
                "binary_data": {"type": "boolean"},
                "classification": {"type": ["integer", "null"], "minimum": 1},
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
        "id": {"type": ["string", "null"]},
        "parameters": {
            "type": ["object", "null"],
            "properties": {name: _PARAMETER_TYPES[name] for name in PARAMETERS},
            "additionalProperties": False,
        },
        "inputs": {"type": "array", "items": _INPUT, "minItems": 1, "maxItems": 1},
        "outputs": {"type": ["array", "null"], "items": _OUTPUT},
        "model_name": {"type": ["string", "null"]},
        "model_version": {"type": ["string", "null"]},
    },
    "required": ["inputs"],
    "additionalProperties": False,
}
_SCALAR = {"type": ["string", "number", "boolean"]}
_ANSWER = {
    "type": "object",
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": {"type": "object", "additionalProperties": _SCALAR},
        "outputs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "datatype": {"type": "string", "enum": ["FP32", "BYTES"]},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    "parameters": {
                        "type": "object",
                        "properties": {"binary_data_size": {"type": "integer", "minimum": 0}},
                        "required": ["binary_data_size"],
                        "additionalProperties": False,
                    },
                    "data": {"type": "array", "items": {"type": ["number", "string"]}},
                },
                "required": ["name", "datatype", "shape"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["model_name", "model_version", "parameters", "outputs"],
    "additionalProperties": False,
}
_BYTES = {"schema": {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}}

INFER: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}},
    "responses": {
        "200": {
            "description": "outputs, in JSON or behind it",
            "content": {"application/json": {"schema": _ANSWER}, "application/octet-stream": _BYTES},
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
