"""Whatever the body, the answer is 200 or a refusal, never a failure of the server."""

from __future__ import annotations

import gzip
import json
import os

import httpx
import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks.soak_fuzz import fuzz, seeds
from tests.service.tiny import CLASSES, SHAPE, some_rows

ROW = some_rows(1)[0].tolist()

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["b64", "x", ""]), inner, max_size=2)
    ),
    max_leaves=12,
)
BODIES = VALUES | st.fixed_dictionaries(
    {"instances": VALUES | st.lists(VALUES | st.just(ROW), max_size=5) | st.lists(st.just(ROW), max_size=5)},
    optional={
        "batch_size": VALUES | st.integers(1, 5),
        "remainder": VALUES | st.sampled_from(["own", "merge", "drop", "error"]),
        "tracking": VALUES | st.booleans(),
        "blend": VALUES | st.fixed_dictionaries({"prior": st.floats(0, 1e300)}),
        "top_k": VALUES | st.integers(1, 5),
        "return": VALUES | st.lists(st.sampled_from(["label", "probabilities", "logits"]), max_size=3),
        "model": VALUES | st.just("tiny"),
        "other": VALUES,
    },
)
ALLOWED = {200, 400, 404, 413, 415, 422}
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(body=BODIES)
def test_any_json_is_answered_or_refused(server: httpx.Client, body: object) -> None:
    response = server.post("/predict", json=body)
    assert response.status_code in ALLOWED, response.text
    assert response.status_code == 200 or set(response.json()) == {"error", "code"}


@SETTINGS
@given(body=st.binary(max_size=60), kind=st.sampled_from(["application/json", "multipart/form-data; boundary=x"]))
def test_any_bytes_are_refused(server: httpx.Client, body: bytes, kind: str) -> None:
    framed = b"--x\r\nContent-Disposition: form-data; name=" + body if "multipart" in kind else body
    response = server.post("/predict", content=framed, headers={"Content-Type": kind})
    assert response.status_code in ALLOWED - {200}, response.text


HEADERS_OF_NPY = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 8, 8), }",
    "{'descr': '<f8', 'fortran_order': True, 'shape': (0, 3, 8, 8), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3, 8, 8), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4, 8, 8), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1, 3, 8, 8), }",
    "{'descr': '<U9', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (192,), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (1, 3, 8, 8), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': 192, }",
    "__import__('os')",
    "(" * 3000,
)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
FIELDS = TEXTS.map(str.strip)  # a client of HTTP sends no other
QUERIES = st.lists(
    st.tuples(
        st.sampled_from(
            ["batch_size", "remainder", "tracking", "blend", "top_k", "return", "compare", "prior", "x"]
        ),
        TEXTS | st.sampled_from(["1", "true", "nan", "inf", "1e999", "-1", "own", "logits", "{}", "9" * 50]),
    ),
    max_size=3,
)


def npy_of(header: str, values: bytes, version: int = 1) -> bytes:
    told = header.encode() + b"\n"
    return (
        b"\x93NUMPY" + bytes([version, 0]) + len(told).to_bytes(2 if version == 1 else 4, "little") + told + values
    )


@SETTINGS
@given(
    header=st.sampled_from(HEADERS_OF_NPY) | TEXTS,
    values=st.sampled_from([b"", bytes(768), b"\xff" * 768, bytes(1536)]) | st.binary(max_size=30),
    version=st.integers(0, 4),
    query=QUERIES,
)
def test_any_npy_and_query_is_answered_or_refused(
    server: httpx.Client, header: str, values: bytes, version: int, query: list[tuple[str, str]]
) -> None:
    body = npy_of(header, values, version)
    response = server.post(
        "/predict", params=query, content=body, headers={"Content-Type": "application/octet-stream"}
    )
    assert response.status_code in ALLOWED, response.text
    whole = header == HEADERS_OF_NPY[0] and len(values) == 768 and version == 1 and values[0] == 0
    assert response.status_code == 200 or not whole or query


@SETTINGS
@given(
    content=st.binary(max_size=40) | st.just(json.dumps({"instances": [ROW]}).encode()),
    cut=st.integers(0, 40),
    tail=st.binary(max_size=5),
    encoding=st.sampled_from(["gzip", "x-gzip", "deflate", "br", "GZIP", "gzip, gzip", "identity"]) | FIELDS,
)
def test_any_compressed_body_is_answered_or_refused(
    server: httpx.Client, content: bytes, cut: int, tail: bytes, encoding: str
) -> None:
    packed = gzip.compress(content, mtime=0)
    body = packed[: len(packed) - cut] + tail
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    response = server.post("/predict", content=body, headers=headers)
    assert response.status_code in ALLOWED, response.text
    whole = content[:2] == b'{"' and not cut and not tail and encoding.strip().lower() in {"gzip", "x-gzip"}
    assert (response.status_code == 200) == whole


TENSORS = st.fixed_dictionaries(
    {"name": st.just("input") | VALUES, "datatype": st.sampled_from(["FP32", "FP16", "UINT8", "BYTES"]) | VALUES},
    optional={
        "shape": st.just([1, *SHAPE]) | st.lists(st.integers(-1, 2**70) | SCALARS, max_size=5) | VALUES,
        "data": st.just([0.5] * 192) | st.just([[0.5] * 192]) | VALUES,
        "parameters": VALUES
        | st.fixed_dictionaries({"binary_data_size": VALUES | st.sampled_from([768, 384, 2**63])}),
        "other": VALUES,
    },
)
INFERS = VALUES | st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=2) | VALUES},
    optional={
        "id": VALUES,
        "model_name": VALUES | st.just("tiny"),
        "outputs": VALUES | st.lists(st.fixed_dictionaries({"name": st.sampled_from(["logits", "labels", "x"])})),
        "parameters": VALUES
        | st.fixed_dictionaries(
            {}, optional={"batch_size": VALUES, "tracking": VALUES, "prior": VALUES, "binary_data_output": VALUES}
        ),
    },
)
LENGTH = "Inference-Header-Content-Length"


@SETTINGS
@given(
    body=INFERS,
    tail=st.sampled_from([b"", bytes(768), bytes(384), b"\xff" * 768]) | st.binary(max_size=9),
    length=st.none() | st.just("right") | st.sampled_from(["0", "-1", "9" * 30, "1e2", "5, 5", "0x5", ""]) | FIELDS,
)
@example(
    body={"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, *SHAPE], "data": [0.5] * 192}]},
    tail=b"",
    length=None,
)
def test_any_infer_request_is_answered_or_refused(
    server: httpx.Client, body: object, tail: bytes, length: str | None
) -> None:
    head = json.dumps(body).encode()
    told = str(len(head)) if length == "right" else length
    headers = {} if told is None else {LENGTH: told}
    response = server.post("/v2/models/tiny/infer", content=head + tail, headers=headers)
    assert response.status_code in ALLOWED, response.text
    if response.status_code == 200:
        outputs = response.json()["outputs"] if LENGTH not in response.headers else []
        for output in outputs:
            assert len(output["data"]) == np.prod(output["shape"]) <= 64 * len(CLASSES)


def test_what_mutations_begin_with_is_answered(server: httpx.Client) -> None:
    for path, headers, body in seeds("tiny", SHAPE):
        response = server.post(path, content=body, headers=dict(headers))
        assert response.status_code == 200, (path, response.text)


def test_mutated_requests_are_answered_or_refused(server: httpx.Client) -> None:
    """On raw connections, with framing of every kind; AUGSERVE_FUZZ=50000 is the long form."""
    count = int(os.environ.get("AUGSERVE_FUZZ", "2000"))
    found = fuzz(str(server.base_url), "tiny", SHAPE, count)
    assert sum(found.values()) == count
    assert set(found) <= {str(status) for status in ALLOWED | {408}}, found
    assert found["200"] > count / 50
