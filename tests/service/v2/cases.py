"""A model, messages to it, and its answers taken apart: what the tests of the protocol's codec share."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import settings

from augserve.manifest import Manifest
from augserve.service.v2.request import InferRequest, parse_infer
from augserve.service.v2.response import encode_response

MANIFEST = Manifest(mode="adaptive", architecture="tiny", classes=["ant", "bee", "cow"], shape=[1, 2, 2], opset=18)
SIZES = MANIFEST.model_copy(update={"sizes": [(2, 2), (4, 4)]})
FORMATS = {"FP32": "f", "FP16": "e", "UINT8": "B"}  # of struct, which knows nothing of NumPy
LOGITS = np.array([[0.1, -1, 0.5], [1e-7, 3, 3]], np.float32)
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)


def tensor(shape: list[int], datatype: str = "FP32", **fields: Any) -> dict[str, Any]:
    return {"name": "input", "shape": shape, "datatype": datatype, **fields}


def row(**fields: Any) -> dict[str, Any]:
    return tensor([1, 1, 2, 2], data=[1, 2, 3, 4]) | fields


def parse(document: Any, tail: bytes | None = None, manifest: Manifest = MANIFEST) -> InferRequest:
    header = json.dumps(document).encode()
    if tail is None:
        return parse_infer(header, None, manifest, 64, "tiny", "3")
    return parse_infer(header + tail, str(len(header)), manifest, 64, "tiny", "3")


def encode(request: InferRequest, logits: np.ndarray = LOGITS, **statistics: Any) -> tuple[dict[str, Any], bytes]:
    """The answer's JSON part and what follows it."""
    body, length = encode_response(
        request, logits, MANIFEST.classes, model="tiny", version="3", statistics=statistics or {"mode": "batch"}
    )
    return json.loads(body[:length]), body[len(body) if length is None else length :]
