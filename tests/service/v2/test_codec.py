"""Messages of the Open Inference Protocol against bytes that are packed by hand."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augserve.errors import (
    AugserveError,
    ConfigurationError,
    InputError,
    MalformedRequestError,
    PayloadTooLargeError,
)
from augserve.manifest import TensorSpec
from augserve.service.http.errors import INTERNAL, refusal_of
from augserve.service.v2.metadata import model_metadata
from augserve.service.v2.request import parse_infer
from tests.service.v2.cases import FORMATS, LOGITS, MANIFEST, SETTINGS, SIZES, encode, parse, row, tensor

# --- rows -------------------------------------------------------------------------------------------------


@SETTINGS
@given(n=st.integers(1, 5), datatype=st.sampled_from(sorted(FORMATS)), data=st.data())
def test_a_row_is_the_same_in_bytes_flat_and_nested(n: int, datatype: str, data: st.DataObject) -> None:
    width = {"FP32": 32, "FP16": 16}.get(datatype)
    number = st.integers(0, 255) if width is None else st.floats(width=width, allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(number, min_size=4 * n, max_size=4 * n))
    expected = np.array(values, np.float32).reshape(n, 1, 2, 2)
    packed = struct.pack(f"<{4 * n}{FORMATS[datatype]}", *values)
    binary = tensor([n, 1, 2, 2], datatype, parameters={"binary_data_size": len(packed)})
    flat = tensor([n, 1, 2, 2], datatype, data=values)
    nested = tensor([n, 1, 2, 2], datatype, data=expected.astype(object).tolist())
    if datatype == "UINT8":
        nested["data"] = np.array(values).reshape(n, 1, 2, 2).tolist()
    for document, tail in ((binary, packed), (flat, None), (flat, b""), (nested, None)):
        rows = parse({"inputs": [document]}, tail).rows
        np.testing.assert_array_equal(rows, expected)
        assert rows.dtype == np.float32
        assert rows.flags.aligned
        assert rows.flags.c_contiguous


def test_numbers_of_half_precision_are_rounded_as_struct_rounds_them() -> None:
    values = [0.1, 1 / 3, 2049.0, -1e-9]
    expected = struct.unpack("<4e", struct.pack("<4e", *values))
    rows = parse({"inputs": [tensor([1, 1, 2, 2], "FP16", data=values)]}).rows
    np.testing.assert_array_equal(rows.ravel(), np.array(expected, np.float32))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("datatype", ["FP32", "FP16"])
def test_bytes_that_are_not_finite_are_refused(value: float, datatype: str) -> None:
    packed = struct.pack(f"<8{FORMATS[datatype]}", *[0.0] * 6, value, 0.0)
    document = tensor([2, 1, 2, 2], datatype, parameters={"binary_data_size": len(packed)})
    with pytest.raises(InputError, match="row 1 holds NaN or inf"):
        parse({"inputs": [document]}, packed)


@pytest.mark.parametrize(("datatype", "value"), [("FP32", 1e39), ("FP16", 65520), ("FP32", 2**127 * 2)])
def test_numbers_beyond_their_datatype_are_refused(datatype: str, value: float) -> None:
    with pytest.raises(InputError, match="NaN or inf"):
        parse({"inputs": [tensor([1, 1, 2, 2], datatype, data=[0, 0, 0, value])]})


@pytest.mark.parametrize("value", [-1, 256, 0.5, 1e300, 2**63])
def test_numbers_that_are_no_bytes_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="whole numbers from 0 to 255"):
        parse({"inputs": [tensor([1, 1, 2, 2], "UINT8", data=[0, 0, 0, value])]})


def test_every_size_of_the_manifest_is_taken() -> None:
    for size in (2, 4):
        document = tensor([1, 1, size, size], data=[0.5] * size**2)
        assert parse({"inputs": [document]}, manifest=SIZES).rows.shape == (1, 1, size, size)
    with pytest.raises(InputError, match=r"expected shape \[N, 1, 2, 2\] or \[N, 1, 4, 4\]; got \[1, 1, 3, 3\]"):
        parse({"inputs": [tensor([1, 1, 3, 3], data=[0.5] * 9)]}, manifest=SIZES)


def test_a_converted_file_keeps_its_own_names() -> None:
    own = MANIFEST.model_copy(
        update={
            "inputs": [TensorSpec(name="pixels", dtype="float32", shape=[1, 2, 2])],
            "outputs": [TensorSpec(name="scores", dtype="float32", shape=[3])],
        }
    )
    for name in ("pixels", "input"):
        request = parse({"inputs": [row(name=name)]}, manifest=own)
        assert encode(request)[0]["outputs"][0]["name"] == "scores"
    request = parse({"inputs": [row()], "outputs": [{"name": "logits"}]}, manifest=own)
    assert encode(request)[0]["outputs"][0]["name"] == "logits"
    with pytest.raises(InputError, match="expected an input named pixels or input"):
        parse({"inputs": [row(name="x")]}, manifest=own)
    described = model_metadata("m", ["1"], own)
    assert (described["inputs"][0]["name"], described["outputs"][0]["name"]) == ("pixels", "scores")


SIXTEEN = {"binary_data_size": 16}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (3, 'expected an object with "inputs"'),
        ({}, "list of one tensor; got None"),
        ({"inputs": []}, "list of one tensor"),
        ({"inputs": [3]}, "list of one tensor"),
        ({"inputs": [row(), row(name="group")]}, "group, tracked_weight come from the parameters"),
        ({"inputs": [{}]}, "expected an input named input; got None"),
        ({"inputs": [row(name=["input"])]}, "expected an input named input; got a list of 1"),
        ({"inputs": [row(datatype="FP64")]}, "unknown datatype 'FP64'; choose one of: FP32, FP16, UINT8"),
        ({"inputs": [row(datatype=None)]}, "unknown datatype None"),
        ({"inputs": [row(datatype=["FP32"])]}, "unknown datatype a list of 1"),
        ({"inputs": [row(shape=None)]}, r"expected shape \[N, 1, 2, 2\]; got None"),
        ({"inputs": [row(shape=[1, 1, 2])]}, r"got \[1, 1, 2\]"),
        ({"inputs": [row(shape=[True, 1, 2, 2])]}, "got a list of 4"),
        ({"inputs": [row(shape=[1, 1, 2, 2.0])]}, "got a list of 4"),
        ({"inputs": [row(shape=[0, 1, 2, 2])]}, "at least 1 row; got 0"),
        ({"inputs": [row(shape=[-1, 1, 2, 2])]}, "at least 1 row; got -1"),
        ({"inputs": [row(shape=[1] * 1000)]}, r"got \[1, 1, 1, 1, 1, 1, 1, 1, \.\.\.\]"),
        ({"inputs": [row(shape=[2, 1, 2, 2])]}, r"expected data of shape \[2, 1, 2, 2\] or \[8\]; got \[4\]"),
        ({"inputs": [row(data=[[1, 2, 3, 4]])]}, r"got \[1, 4\]"),
        ({"inputs": [row(data=[[[1, 2], [3, 4]]])]}, r"got \[1, 2, 2\]"),
        ({"inputs": [row(data=[])]}, r"got \[0\]"),
        ({"inputs": [row(data=4.0)]}, "got 4.0"),
        ({"inputs": [row(data=[1, 2, 3, "4"])]}, "values of type str"),
        ({"inputs": [row(data=[1, 2, 3, True])]}, "values of type bool"),
        ({"inputs": [row(data=[1, 2, 3, None])]}, "values of type NoneType"),
        ({"inputs": [row(data=[1, [2, 3, 4]])]}, "list beside numbers"),
        ({"inputs": [row(data=[[1], [2, 3, 4]])]}, "different lengths"),
        ({"inputs": [row(data=None)]}, "got neither"),
        ({"inputs": [row(parameters=SIXTEEN)]}, "got both"),
        ({"inputs": [row()], "model_name": "other"}, "expected model_name 'tiny'"),
        ({"inputs": [row()], "model_version": "2"}, "expected model_version '3'"),
        ({"inputs": [row()], "model_version": {}}, "expected model_version '3'"),
        ({"inputs": [row()], "id": 7}, "expected id as text; got 7"),
        ({"inputs": [row()], "outputs": {}}, "list of objects"),
        ({"inputs": [row()], "outputs": ["logits"]}, "list of objects"),
        ({"inputs": [row()], "outputs": [{"name": "x"}]}, "choose from: logits, probabilities, labels"),
        ({"inputs": [row()], "outputs": [{"name": ["logits"]}]}, "unknown output a list of 1"),
        ({"inputs": [row()], "outputs": [{"name": "labels"}] * 2}, "got labels again"),
    ],
)
def test_a_tensor_that_is_not_the_model_s_is_refused(document: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse(document)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"batchsize": 2}, "unknown parameter of the request 'batchsize'; choose from: batch_size, remainder"),
        ({"timeout": 1}, "binary_data_output"),
        ({"return": ["label"]}, "unknown parameter"),
        ({"model": "tiny"}, "unknown parameter"),
        ({"x" * 9999: 1}, "unknown parameter"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "2"}, "batch_size"),
        ({"tracking": 1}, "tracking"),
        ({"tracked_weight": 1.5}, "tracked_weight"),
        ({"tracked_weight": True}, "tracked_weight"),
        ({"prior": -1}, "prior"),
        ({"remainder": "pad"}, "'own', 'merge', 'drop' or 'error'"),
        ({"tracking": True, "prior": 1}, "got both"),
        ({"binary_data_output": 1}, "binary_data_output as true or false"),
        ([], "parameters of the request as an object"),
    ],
)
def test_an_unknown_or_impossible_parameter_is_refused(parameters: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        parse({"inputs": [row()], "parameters": parameters})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"inputs": [row()], "instances": []}, "unknown field 'instances'; choose from: id, inputs"),
        ({"inputs": [row(dtype="FP32")]}, "unknown field of the input 'dtype'"),
        ({"inputs": [row(parameters={"shared_memory_region": "x"})]}, "choose from: binary_data_size"),
        ({"inputs": [row()], "outputs": [{"name": "logits", "data": []}]}, "unknown field of an output"),
        ({"inputs": [row()], "outputs": [{"name": "logits", "parameters": {"top_k": 1}}]}, "classification"),
        ({"inputs": [row()], "outputs": [{"name": "logits", "parameters": {"binary_data": "yes"}}]}, "true or"),
        ({"inputs": [row()], "outputs": [{"name": "logits", "parameters": {"classification": 0}}]}, ">= 1; got 0"),
        ({"inputs": [row()], "outputs": [{"name": "logits", "parameters": {"classification": True}}]}, ">= 1"),
        ({"inputs": [row()], "outputs": [{"name": "labels", "parameters": {"classification": 1}}]}, "for labels"),
    ],
)
def test_an_unknown_or_impossible_field_is_refused(document: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse(document)


def test_too_many_rows_are_refused_before_they_are_looked_for() -> None:
    for n in (65, 2**62, 10**18):
        with pytest.raises(PayloadTooLargeError, match=f"at most 64 rows; got {n}"):
            parse({"inputs": [row(shape=[n, 1, 2, 2])]})


# --- framing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [0, -1, 15, 17, 16.0, "16", True, 2**64, None])
def test_the_announced_length_must_be_the_shape_s(announced: object) -> None:
    with pytest.raises(InputError, match="expected binary_data_size 16, FP32 of shape"):
        parse({"inputs": [tensor([1, 1, 2, 2], parameters={"binary_data_size": announced})]}, bytes(16))


@pytest.mark.parametrize("length", [0, 15, 17, 400])
def test_bytes_must_be_as_many_as_announced(length: int) -> None:
    with pytest.raises(
        MalformedRequestError, match=f"expected 16 bytes of tensors behind the JSON part; got {length}"
    ):
        parse({"inputs": [tensor([1, 1, 2, 2], parameters=SIXTEEN)]}, bytes(length))
    with pytest.raises(MalformedRequestError, match="expected 16 bytes of tensors behind the JSON part; got 0"):
        parse({"inputs": [tensor([1, 1, 2, 2], parameters=SIXTEEN)]})


def test_bytes_that_belong_to_nothing_are_refused() -> None:
    with pytest.raises(MalformedRequestError, match="whose input holds its data; got 1"):
        parse({"inputs": [row()]}, b"\0")


@pytest.mark.parametrize("length", ["", "0", "-1", "+2", "3", "2.0", "x", "²", "9" * 30, "0x2", "1_0"])
def test_a_header_length_that_is_not_one_is_refused(length: str) -> None:
    with pytest.raises(MalformedRequestError, match="Inference-Header-Content-Length from 1 to the body's 2 bytes"):
        parse_infer(b"{}", length, MANIFEST, 64)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"inputs": NaN}', b"[" * 5000 + b"]" * 5000, b'"\\ud800"'])
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequestError, match="expected a JSON object"):
        parse_infer(body, None, MANIFEST, 64)


# --- hostile bytes ----------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=8,
)


def or_any(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return right | right | right | VALUES


INPUTS = st.fixed_dictionaries(
    {
        "name": or_any(st.just("input")),
        "datatype": or_any(st.sampled_from(sorted(FORMATS))),
        "shape": or_any(st.just([1, 1, 2, 2]) | st.lists(st.integers(-1, 2**70), max_size=5)),
    },
    optional={
        "data": or_any(st.just([1, 2, 3, 4])),
        "parameters": or_any(st.fixed_dictionaries({"binary_data_size": st.integers(0, 20) | VALUES})),
    },
)
OUTPUTS = st.fixed_dictionaries(
    {"name": or_any(st.sampled_from(["logits", "probabilities", "labels"]))},
    optional={
        "parameters": st.fixed_dictionaries(
            {}, optional={"binary_data": or_any(st.booleans()), "classification": or_any(st.integers(0, 4))}
        )
    },
)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": or_any(st.integers(0, 3)),
        "tracking": or_any(st.booleans()),
        "prior": or_any(st.floats(0, 9)),
        "binary_data_output": or_any(st.booleans()),
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"inputs": or_any(st.lists(INPUTS, min_size=1, max_size=1))},
    optional={
        "outputs": or_any(st.lists(OUTPUTS, max_size=3)),
        "parameters": or_any(PARAMETERS),
        "id": or_any(st.text(st.characters(exclude_categories=["Cs"]))),
    },
)


def answered_or_refused(body: bytes, header_length: str | None) -> None:
    refused: AugserveError | None = None
    try:
        request = parse_infer(body, header_length, MANIFEST, 64, "tiny")
    except AugserveError as error:
        refused = error
    if refused is None:
        assert request.rows.shape[1:] == (1, 2, 2)
        assert np.isfinite(request.rows).all()
        encode(request, LOGITS[: len(request.rows)])
    else:
        assert refusal_of(refused) is not INTERNAL
        assert len(str(refused)) < 500
        str(refused).encode()


@SETTINGS
@given(body=st.binary(max_size=80), length=st.none() | st.text(max_size=6) | st.integers(-3, 99).map(str))
def test_any_bytes_are_refused(body: bytes, length: str | None) -> None:
    answered_or_refused(body, length)


@settings(SETTINGS, max_examples=400)
@given(document=DOCUMENTS, tail=st.none() | st.binary(max_size=20) | st.binary(min_size=16, max_size=16))
def test_any_document_is_answered_or_refused(document: object, tail: bytes | None) -> None:
    try:
        header = json.dumps(document).encode()
    except UnicodeEncodeError:
        return
    answered_or_refused(header + (tail or b""), None if tail is None else str(len(header)))
