"""Whatever the body, the answer is 200 or a refusal, never a failure of the server."""

from __future__ import annotations

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.tiny import some_rows

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
