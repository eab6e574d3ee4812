"""Every refusal: the status, the code, and words that name what came."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import httpx
import pytest
from PIL import Image

from augserve import errors
from augserve.service.http import errors as http_errors
from augserve.service.model.predictor import Predictor
from tests.service.tiny import running, some_rows, write_model

ROW = some_rows(1)[0].tolist()
JSON = {"Content-Type": "application/json"}


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size).save(data, "PNG")
    return data.getvalue()


def assert_refused(response: httpx.Response, status: int, code: str, words: str = "") -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "code"}
    assert response.json()["code"] == code
    assert words in response.json()["error"]
    assert len(response.json()["error"]) < 500
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b'{"instances": [NaN]}', "JSON"),
        (b'{"instances": [1e999]}', "JSON"),
        (b'{"instances": ' + b"[" * 5000 + b"]" * 5000 + b"}", "depth"),
        (b'{"instances": ["\xff"]}', "JSON"),
    ],
)
def test_malformed_json_is_400(server: httpx.Client, body: bytes, words: str) -> None:
    assert_refused(server.post("/predict", content=body, headers=JSON), 400, "malformed_request", words)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ([], "invalid_input", "expected an object"),
        ({}, "invalid_input", "instances"),
        ({"instances": None}, "invalid_input", "instances"),
        ({"instances": []}, "invalid_input", "at least 1 row"),
        ({"instances": 3}, "invalid_input", "list of rows"),
        ({"instances": ROW}, "invalid_input", "(N, 3, 8, 8)"),
        ({"instances": [ROW[:2]]}, "invalid_input", "(1, 2, 8, 8)"),
        ({"instances": [ROW, [ROW[0], ROW[1], [[1.0]]]]}, "invalid_input", "equal shape"),
        ({"instances": [ROW, [[], [], []]]}, "invalid_input", "equal shape"),
        ({"instances": [[[[]]]]}, "invalid_input", "(1, 1, 1, 0)"),
        ({"instances": [1.0, 2.0]}, "invalid_input", "(2)"),
        ({"instances": ["row"]}, "invalid_input", "str"),
        ({"instances": [None]}, "invalid_input", "NoneType"),
        ({"instances": [[[[True]]]]}, "invalid_input", "bool"),
        ({"instances": [ROW, ["1.5"]]}, "invalid_input", ""),
        ({"instances": [[[[1e39] * 8] * 8] * 3]}, "invalid_input", "row 0 holds NaN or inf"),
        ({"instances": [ROW, {"b64": "!!"}]}, "invalid_input", "row 1: expected base64"),
        ({"instances": [{"b64": 3}]}, "invalid_input", "row 0"),
        ({"instances": [{"b64": "", "url": ""}]}, "invalid_input", "'url'"),
        ({"instances": [{}]}, "invalid_input", "no field"),
        (
            {"instances": [ROW], "batchsize": 2},
            "invalid_setting",
            "'batchsize'; the fields are: instances, model",
        ),
        ({"instances": [ROW], "x" * 9999: 2}, "invalid_setting", "unknown field"),
        ({"instances": [ROW], "returns": ["label"]}, "invalid_setting", "'returns'"),
        ({"instances": [ROW], "batch_size": 0}, "invalid_setting", "batch_size"),
        ({"instances": [ROW], "batch_size": "2"}, "invalid_setting", "batch_size"),
        ({"instances": [ROW], "batch_size": True}, "invalid_setting", "batch_size"),
        ({"instances": [ROW], "tracking": 1}, "invalid_setting", "tracking"),
        ({"instances": [ROW], "remainder": "pad"}, "invalid_setting", "'own', 'merge', 'drop' or 'error'"),
        ({"instances": [ROW], "top_k": 0}, "invalid_setting", "top_k"),
        ({"instances": [ROW], "return": []}, "invalid_setting", "return"),
        (
            {"instances": [ROW], "return": ["scores"]},
            "invalid_setting",
            "'label', 'probabilities' or 'logits'",
        ),
        ({"instances": [ROW], "blend": {}}, "invalid_setting", "got neither"),
        ({"instances": [ROW], "blend": {"prior": 1, "tracked_weight": 1}}, "invalid_setting", "got both"),
        ({"instances": [ROW], "blend": {"tracked_weight": 1.5}}, "invalid_setting", "tracked_weight"),
        ({"instances": [ROW], "blend": {"prior": -1}}, "invalid_setting", "prior"),
        ({"instances": [ROW], "blend": {"weight": 1}}, "invalid_setting", "tracked_weight, prior"),
        ({"instances": [ROW], "blend": {"prior": 1}, "tracking": False}, "invalid_setting", "got both"),
        (
            {"instances": [ROW] * 3, "batch_size": 2, "remainder": "error"},
            "impossible_statistics",
            "1 left over",
        ),
        (
            {"instances": [ROW], "batch_size": 2, "remainder": "drop"},
            "impossible_statistics",
            "none of the 1",
        ),
    ],
)
def test_impossible_request_is_422(server: httpx.Client, body: object, code: str, words: str) -> None:
    assert_refused(server.post("/predict", content=json.dumps(body), headers=JSON), 422, code, words)


def test_rows_that_make_infinite_logits_are_422(server: httpx.Client) -> None:
    huge = [[[3e38] * 8] * 8] * 3
    response = server.post("/predict", json={"instances": [ROW, huge], "tracking": True})
    assert_refused(response, 422, "invalid_input", "finite logits")


def test_one_row_group_is_422_where_statistics_need_two(flat_model: Path) -> None:
    with running(flat_model) as client:
        response = client.post("/predict", json={"instances": [ROW]})
        assert_refused(response, 422, "impossible_statistics", "at least 2 rows")
        assert client.post("/predict", json={"instances": [ROW], "tracking": True}).status_code == 200


def test_file_without_preprocessing_takes_no_images(tmp_path: Path) -> None:
    with running(write_model(tmp_path / "bare.onnx", "tracked", preprocessing=None)) as client:
        response = client.post("/predict", files={"file": png()})
        assert_refused(response, 422, "invalid_input", "does not say how to preprocess")
        response = client.post("/predict", json={"instances": [ROW], "tracking": False})
        assert_refused(response, 422, "impossible_statistics", "serves tracked statistics only")


def test_unknown_names_are_404_and_methods_405(server: httpx.Client) -> None:
    response = server.post("/predict", json={"instances": [ROW], "model": "other"})
    assert_refused(response, 404, "unknown_model", "the model is 'tiny'")
    assert_refused(server.get("/nowhere"), 404, "not_found", "/nowhere")
    assert_refused(server.post("/predict/"), 404, "not_found")
    response = server.get("/predict")
    assert_refused(response, 405, "method_not_allowed", "POST")
    assert response.headers["Allow"] == "POST"


def test_body_over_the_limit_is_413_with_and_without_length(server: httpx.Client) -> None:
    body = b" " * 200_001
    assert_refused(server.post("/predict", content=body, headers=JSON), 413, "payload_too_large", "200000 bytes")
    chunks = (body[i : i + 5000] for i in range(0, len(body), 5000))
    assert_refused(server.post("/predict", content=chunks, headers=JSON), 413, "payload_too_large", "200000")
    fits = json.dumps({"instances": [ROW]}).encode().ljust(200_000)
    assert server.post("/predict", content=fits, headers=JSON).status_code == 200
    assert server.post("/predict", content=iter([fits[:999], fits[999:]]), headers=JSON).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_body_far_over_the_limit_still_gets_its_answer(server: httpx.Client, chunked: bool) -> None:
    body = b" " * 20_000_000
    content = iter([body]) if chunked else body
    assert_refused(server.post("/predict", content=content, headers=JSON), 413, "payload_too_large")


def test_too_many_rows_or_pixels_are_413(server: httpx.Client) -> None:
    response = server.post("/predict", json={"instances": [[1.0]] * 65})
    assert_refused(response, 413, "payload_too_large", "at most 64 rows; got 65")
    bomb = png((2000, 2000))
    response = server.post("/predict", files=[("file", png()), ("file", bomb)])
    assert_refused(response, 413, "payload_too_large", "row 1: expected an image of at most 10000 pixels")
    response = server.post("/predict", json={"instances": [{"b64": base64.b64encode(bomb).decode()}]})
    assert_refused(response, 413, "payload_too_large", "2000 x 2000")
    assert_refused(server.post("/predict", files=[("file", png())] * 65), 413, "payload_too_large", "got 65")


def test_other_media_types_are_415(server: httpx.Client) -> None:
    for headers in (
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ):
        response = server.post("/predict", content=b"{}", headers=headers)
        assert_refused(response, 415, "unsupported_media_type", headers.get("Content-Type", "none"))
    response = server.post("/predict", content=b"{}", headers={**JSON, "Content-Encoding": "br"})
    assert_refused(response, 415, "unsupported_media_type", "br")


def test_text_sent_as_an_image_is_415(server: httpx.Client) -> None:
    files = [("file", ("a.png", png(), "image/png")), ("file", ("b.png", b"just text", "image/png"))]
    words = "row 1: expected a PNG, JPEG or WebP image"
    assert_refused(server.post("/predict", files=files), 415, "unsupported_media_type", words)
    text = base64.b64encode(b"just text").decode()
    response = server.post("/predict", json={"instances": [{"b64": text}]})
    assert_refused(response, 415, "unsupported_media_type", "row 0")
    response = server.post("/predict", files=[("file", ("", b""))])
    assert response.status_code in {400, 415}, response.text


def test_damaged_image_is_422(server: httpx.Client) -> None:
    assert_refused(server.post("/predict", files={"file": png()[:45]}), 422, "invalid_input", "damaged")


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"instances": "[]"}, "invalid_setting", "unknown field 'instances'; the fields are: file"),
        ({"batch_size": "two"}, "invalid_setting", "batch_size"),
        ({"batch_size": ["2", "3"]}, "invalid_setting", "once"),
        ({"tracking": "perhaps"}, "invalid_setting", "tracking"),
        ({"tracked_weight": "nan"}, "invalid_setting", "tracked_weight"),
        ({"tracked_weight": "1", "prior": "1"}, "invalid_setting", "got both"),
        ({"tracked_weight": "1", "blend": "{}"}, "invalid_setting", "got both"),
        ({"prior": "1", "tracking": "true"}, "invalid_setting", "got both"),
        ({"blend": "{"}, "invalid_setting", "JSON object"),
        ({"blend": "[]"}, "invalid_setting", "blend"),
        ({"return": ","}, "invalid_setting", "return"),
    ],
)
def test_impossible_form_is_422(server: httpx.Client, fields: dict, code: str, words: str) -> None:
    assert_refused(server.post("/predict", data=fields, files={"file": png()}), 422, code, words)


def test_form_without_files_is_422(server: httpx.Client) -> None:
    response = server.post("/predict", files={"batch_size": (None, "2")})
    assert_refused(response, 422, "invalid_input", "at least one image")


@pytest.mark.parametrize(
    ("boundary", "body"),
    [
        ("", b"--x--"),
        ("; boundary=x", b""),
        ("; boundary=x", b"no boundary"),
        ("; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nhalf'),
        ("; boundary=x", b"--x\r\nContent-Type: text/plain\r\n\r\nnameless\r\n--x--\r\n"),
        ("; boundary=x", b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\r\n--x--\r\n'),
        ("; boundary=" + "x" * 2000, b"--x--"),
    ],
)
def test_malformed_form_is_400(server: httpx.Client, boundary: str, body: bytes) -> None:
    response = server.post("/predict", content=body, headers={"Content-Type": f"multipart/form-data{boundary}"})
    assert_refused(response, 400, "malformed_request")


def test_unexpected_failure_is_500_and_logged(
    server: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(Predictor, "prepare", fail)
    response = server.post("/predict", json={"instances": [ROW]})
    assert_refused(response, 500, "internal_error")
    assert "secret" not in response.text
    assert any(record.exc_info for record in caplog.records if record.name == http_errors.__name__)


def test_every_error_of_the_service_has_a_row_in_the_table() -> None:
    elsewhere = {errors.RemoteError}
    kinds = set(errors.ServiceError.__subclasses__()) - elsewhere
    assert kinds <= set(http_errors.TABLE)
    assert http_errors.refusal_of(errors.ModelFileError("x")) is http_errors.INTERNAL
