"""From logits to the bytes of an infer response: JSON, or JSON and the outputs' bytes behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from augserve.runtime import softmax
from augserve.service.v2.request import InferRequest, WantedOutput
from augserve.service.v2.tensors import bytes_of


class Encoded(NamedTuple):
    """A body, and the length of its JSON part where tensors follow (else None)."""

    body: bytes
    header_length: int | None


def encode_response(
    request: InferRequest,
    logits: npt.NDArray[np.float32],
    classes: Sequence[str],
    *,
    model: str,
    version: str,
    statistics: Mapping[str, Any],
) -> Encoded:
    """Write the answer to an infer request.

    Args:
        request: says which outputs are wanted, and how.
        logits: float32 (K, classes), finite, of the rows that were kept.
        classes: their names.
        model: the model's name.
        version: the model's version.
        statistics: how the rows were normalised; becomes the response's parameters, lists as JSON text, since a
            parameter is text, a number or a boolean.

    Returns:
        The body and the length of its JSON part.

    Example:
        >>> encode_response(request, logits, ["ant"], model="m", version="1", statistics={"mode": "batch"}).body
        b'{"model_name":"m","model_version":"1","parameters":{"mode":"batch"},"outputs":[...]}'
    """
    entries: list[dict[str, Any]] = []
    tails: list[bytes] = []
    for output in request.outputs:
        columns, values = _values(output, logits, classes)
        datatype = "BYTES" if isinstance(values, list) else "FP32"
        entry: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": [len(logits), *columns]}
        if output.binary:
            tails.append(bytes_of(values) if isinstance(values, list) else values.astype("<f4").tobytes())
            entry["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            entry["data"] = values
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    document["parameters"] = {name: _parameter(value) for name, value in statistics.items()}
    document["outputs"] = entries
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Encoded(b"".join((header, *tails)), len(header) if tails else None)


def _values(
    output: WantedOutput, logits: npt.NDArray[np.float32], classes: Sequence[str]
) -> tuple[list[int], npt.NDArray[np.float32] | list[str]]:
    """Return an output's shape after its rows, and its values in one row-major list: float32 or text."""
    if output.kind == "labels":
        return [], [classes[best] for best in logits.argmax(axis=1)]
    values = softmax(logits).astype(np.float32) if output.kind == "probabilities" else logits
    if output.classification is None:
        return [values.shape[1]], values.ravel()
    # Sorted by the logits: probabilities that round to the same float32 keep their order.
    order = np.argsort(-logits, axis=1, kind="stable")[:, : output.classification]
    best = zip(values, order, strict=True)
    return [order.shape[1]], [f"{row[k]!s}:{k}:{classes[k]}" for row, indices in best for k in indices]


def _parameter(value: object) -> object:
    return orjson.dumps(value).decode() if isinstance(value, (list, dict)) else value
