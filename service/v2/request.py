"""From the bytes of an infer request to checked rows, settings and the outputs that are wanted.

The body is a JSON object; or such an object, as long as the header Inference-Header-Content-Length says, and
behind it the bytes of the input ("binary tensor data" extension). Fields and parameters that mean nothing here are
refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from augserve.errors import ConfigurationError, InputError, MalformedRequestError, PayloadTooLargeError
from augserve.manifest import Manifest
from augserve.operators import INPUT, STEERING
from augserve.runtime import check_rows
from augserve.service.schemas import PredictSettings, parse_settings, shorten
from augserve.service.v2.metadata import input_name, output_name
from augserve.service.v2.tensors import check_datatype, from_binary, from_json

Kind = Literal["logits", "probabilities", "labels"]

FIELDS = ("id", "inputs", "outputs", "parameters", "model_name", "model_version")
PARAMETERS = ("batch_size", "remainder", "tracking", "tracked_weight", "prior", "binary_data_output")
_INPUT_FIELDS = ("name", "shape", "datatype", "parameters", "data")
_SHOWN_SIZES = 8


class WantedOutput(NamedTuple):
    """One output of an answer: the name that it was asked by, and its form.

    classification is k where the k largest values are wanted as text "value:index:label", else None.
    """

    name: str
    kind: Kind
    binary: bool
    classification: int | None


class InferRequest(NamedTuple):
    """A request that passed every check: rows are float32 (N, C, H, W)."""

    id: str | None
    rows: npt.NDArray[np.float32]
    settings: PredictSettings
    outputs: list[WantedOutput]


def parse_infer(
    body: bytes,
    header_length: str | None,
    manifest: Manifest,
    max_rows: int,
    model: str | None = None,
    version: str | None = None,
) -> InferRequest:
    """Parse the body of POST /v2/models/MODEL/infer.

    Args:
        body: JSON, or JSON and tensors.
        header_length: the header Inference-Header-Content-Length; None where there is none.
        manifest: what the model takes and gives.
        max_rows: the most rows of a request.
        model: the model's name, which a model_name in the body must be.
        version: the version that answers, which a model_version in the body must be.

    Returns:
        The request.

    Raises:
        MalformedRequestError: not JSON, or bytes that are too few or too many.
        InputError: a missing, unknown or wrong tensor, or values that are not finite.
        ConfigurationError: an unknown field or parameter, or one of the wrong type or range.
        PayloadTooLargeError: too many rows.

    Example:
        >>> tensor = {"name": "input", "shape": [1, 1, 1, 2], "datatype": "FP32", "data": [0.5, 1]}
        >>> parse_infer(orjson.dumps({"inputs": [tensor]}), None, manifest, max_rows=64).rows.shape
        (1, 1, 1, 2)
    """
    header, tail = _split(body, header_length)
    try:
        data = orjson.loads(header)
    except orjson.JSONDecodeError as error:
        raise MalformedRequestError(f"expected a JSON object; {str(error)[:150]}") from None
    if not isinstance(data, dict):
        raise InputError(f'expected an object with "inputs"; got {shorten(data)}')
    _refuse_unknown("field", data, FIELDS)
    for field, own in (("model_name", model), ("model_version", version)):
        if own is not None and data.get(field) not in (None, own):
            raise InputError(f"expected {field} {own!r}, as the path means it; got {shorten(data[field])}")
    request_id = data.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InputError(f"expected id as text; got {shorten(request_id)}")
    parameters = _parameters(data, "the request", PARAMETERS)
    binary = _boolean(parameters, "binary_data_output", default=False)
    outputs = _outputs(data.get("outputs"), binary, manifest)
    settings = _settings(parameters)
    return InferRequest(request_id, _rows(data.get("inputs"), tail, manifest, max_rows), settings, outputs)


def _split(body: bytes, header_length: str | None) -> tuple[memoryview, memoryview]:
    """Return the JSON part and what follows it."""
    view = memoryview(body)
    if header_length is None:
        return view, view[len(view) :]
    text = header_length.strip()
    size = int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else 0
    if not 0 < size <= len(view):
        raise MalformedRequestError(
            f"expected Inference-Header-Content-Length from 1 to the body's {len(view)} bytes; got {shorten(text)}"
        )
    return view[:size], view[size:]


def _refuse_unknown(what: str, came: Iterable[str], known: Iterable[str]) -> None:
    for name in came:
        if name not in known:
            raise ConfigurationError(f"unknown {what} {shorten(name)}; choose from: {', '.join(known)}")


def _parameters(entry: Mapping[str, Any], where: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the parameters of the request, an input or an output."""
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise ConfigurationError(f"expected parameters of {where} as an object; got {shorten(parameters)}")
    _refuse_unknown(f"parameter of {where}", parameters, known)
    return parameters


def _boolean(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ConfigurationError(f"expected {name} as true or false; got {shorten(value)}")
    return value


def _settings(parameters: Mapping[str, Any]) -> PredictSettings:
    settings = {name: value for name, value in parameters.items() if name != "binary_data_output"}
    blend = {name: settings.pop(name) for name in ("tracked_weight", "prior") if name in settings}
    if blend:
        settings["blend"] = blend
    return parse_settings({**settings, "return": ["logits"]}, known=PARAMETERS, strict=True)


def _rows(inputs: object, tail: memoryview, manifest: Manifest, max_rows: int) -> npt.NDArray[np.float32]:
    """Return the rows that the one input holds."""
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        steering = ", ".join(STEERING)
        hint = f"; {steering} come from the parameters" if isinstance(inputs, list) and len(inputs) > 1 else ""
        raise InputError(f'expected "inputs" as a list of one tensor; got {shorten(inputs)}{hint}')
    tensor: dict[str, Any] = inputs[0]
    _refuse_unknown("field of the input", tensor, _INPUT_FIELDS)
    names = list(dict.fromkeys((input_name(manifest), INPUT)))
    if tensor.get("name") not in names:
        raise InputError(f"expected an input named {' or '.join(names)}; got {shorten(tensor.get('name'))}")
    datatype = check_datatype(tensor.get("datatype"))
    shape = _shape(tensor.get("shape"), manifest, max_rows)
    parameters = _parameters(tensor, "the input", ("binary_data_size",))
    data = tensor.get("data")
    if "binary_data_size" in parameters:
        if data is not None:
            raise InputError("expected data or binary_data_size; got both: leave one of them out")
        return check_rows(from_binary(tail, parameters["binary_data_size"], datatype, shape), manifest)
    if data is None:
        raise InputError("expected data, or binary_data_size with bytes behind the JSON part; got neither")
    if len(tail):
        raise MalformedRequestError(
            f"expected no bytes behind the JSON part, whose input holds its data; got {len(tail)}"
        )
    return check_rows(from_json(data, datatype, shape), manifest)


def _shape(shape: object, manifest: Manifest, max_rows: int) -> list[int]:
    """Return a shape that the model takes."""
    expected = " or ".join("[N, " + ", ".join(map(str, row)) + "]" for row in manifest.shapes)
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise InputError(f"expected shape {expected}; got {shorten(shape)}")
    if shape[1:] not in manifest.shapes:
        more = ", ..." if len(shape) > _SHOWN_SIZES else ""
        raise InputError(f"expected shape {expected}; got [{', '.join(map(str, shape[:_SHOWN_SIZES]))}{more}]")
    if shape[0] < 1:
        raise InputError(f"expected shape {expected} with at least 1 row; got {shape[0]}")
    if shape[0] > max_rows:
        raise PayloadTooLargeError(f"expected at most {max_rows} rows; got {shape[0]}; send several requests")
    return shape


def _outputs(outputs: object, binary: bool, manifest: Manifest) -> list[WantedOutput]:
    """Return the outputs that are asked for; none means the model's own."""
    kinds: dict[str, Kind] = {"logits": "logits", "probabilities": "probabilities", "labels": "labels"}
    kinds[output_name(manifest)] = "logits"
    if outputs is None or outputs == []:
        return [WantedOutput(output_name(manifest), "logits", binary, None)]
    if not isinstance(outputs, list) or not all(isinstance(entry, dict) for entry in outputs):
        raise InputError(f'expected "outputs" as a list of objects; got {shorten(outputs)}')
    wanted: dict[str, WantedOutput] = {}
    for entry in outputs:
        _refuse_unknown("field of an output", entry, ("name", "parameters"))
        name = entry.get("name")
        if not isinstance(name, str) or name not in kinds:
            raise InputError(f"unknown output {shorten(name)}; choose from: {', '.join(kinds)}")
        if name in wanted:
            raise InputError(f"expected each output once; got {name} again")
        wanted[name] = _output(name, kinds[name], _parameters(entry, "an output", _OUTPUT_PARAMETERS), binary)
    return list(wanted.values())


_OUTPUT_PARAMETERS = ("binary_data", "classification")


def _output(name: str, kind: Kind, parameters: Mapping[str, Any], binary: bool) -> WantedOutput:
    count = parameters.get("classification")
    if count is not None:
        if type(count) is not int or count < 1:
            raise ConfigurationError(f"expected classification as an integer >= 1; got {shorten(count)}")
        if kind == "labels":
            raise ConfigurationError("expected classification of logits or probabilities; got it for labels")
    return WantedOutput(name, kind, _boolean(parameters, "binary_data", default=binary), count)
