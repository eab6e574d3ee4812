"""What a client sends, read back by other parsers: json, numpy.load and the e-mail package."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from email import message_from_bytes
from typing import Any

import httpx
import numpy as np
import pytest

from augserve.client import AsyncClient, Client
from augserve.client.bodies import SMALL_BYTES
from augserve.errors import ConfigurationError, InputError

ROWS = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
EVERYTHING = {
    "batch_size": 2,
    "tracking": None,
    "blend": {"prior": 1.5},
    "remainder": "merge",
    "top_k": 3,
    "returns": ["label", "logits"],
    "model": "tiny",
    "compare": True,
}
AS_JSON = {
    "batch_size": 2,
    "blend": {"prior": 1.5},
    "remainder": "merge",
    "top_k": 3,
    "return": ["label", "logits"],
    "model": "tiny",
    "compare": True,
}
DEFAULTS = {"tracking": True, "remainder": "own", "return": ["label", "probabilities"]}

Send = Callable[..., httpx.Request]


@pytest.fixture(params=["sync", "async"])
def send(request: pytest.FixtureRequest) -> Send:
    """Return the request that either client makes of a prediction."""

    def call(given: Any, *, api_key: str | None = None, **options: Any) -> httpx.Request:
        seen: list[httpx.Request] = []

        def handler(request: httpx.Request) -> httpx.Response:
            request.read()
            seen.append(request)
            return httpx.Response(200, json={"statistics": {}})

        async def by_asyncio() -> None:
            transport = httpx.MockTransport(ahandler)
            async with AsyncClient("http://tiny/", api_key=api_key, transport=transport) as client:
                await client.predict(given, **options)

        async def ahandler(request: httpx.Request) -> httpx.Response:
            await request.aread()
            seen.append(request)
            return httpx.Response(200, json={"statistics": {}})

        if request.param == "async":
            asyncio.run(by_asyncio())
        else:
            with Client("http://tiny/", api_key=api_key, transport=httpx.MockTransport(handler)) as client:
                client.predict(given, **options)
        assert len(seen) == 1
        assert (seen[0].method, seen[0].url.path) == ("POST", "/predict")
        return seen[0]

    return call


@pytest.mark.parametrize(("settings", "expected"), [({}, DEFAULTS), (EVERYTHING, AS_JSON)])
@pytest.mark.parametrize("given", [ROWS, ROWS.astype(np.float32), ROWS.tolist(), np.asfortranarray(ROWS)])
def test_json_holds_the_rows_and_what_was_set(send: Send, given: Any, settings: dict, expected: dict) -> None:
    request = send(given, **settings)
    assert request.headers["Content-Type"] == "application/json"
    body = json.loads(request.content)
    np.testing.assert_array_equal(np.float32(body.pop("instances")), ROWS.astype(np.float32))
    assert body == expected
    assert not request.url.query


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"tracking": "true", "remainder": "own", "return": "label,probabilities"}),
        ({"tracking": False}, {"tracking": "false", "remainder": "own", "return": "label,probabilities"}),
        (
            {"tracking": False, "blend": {"tracked_weight": 0.25}},
            {"tracked_weight": "0.25", "remainder": "own", "return": "label,probabilities"},
        ),
        (
            EVERYTHING,
            {"batch_size": "2", "prior": "1.5", "remainder": "merge", "top_k": "3", "return": "label,logits"}
            | {"model": "tiny", "compare": "true"},
        ),
    ],
)
@pytest.mark.parametrize("given", [ROWS, np.asfortranarray(ROWS), ROWS.tolist()])
def test_npy_holds_the_rows_and_the_query_what_was_set(
    send: Send, given: Any, settings: dict, expected: dict
) -> None:
    request = send(given, encoding="npy", **settings)
    assert request.headers["Content-Type"] == "application/octet-stream"
    rows = np.load(io.BytesIO(request.content), allow_pickle=False)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, ROWS.astype(np.float32))
    assert dict(request.url.params) == expected


@pytest.mark.parametrize("encoding", ["json", "npy"])
def test_images_are_a_form(send: Send, encoding: str, tmp_path: Any) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG one")
    request = send([path, str(path), b"two\r\n--"], encoding=encoding, **EVERYTHING)
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + request.content).get_payload()
    named = [
        (part.get_param("name", header="Content-Disposition"), part.get_payload(decode=True)) for part in parts
    ]
    images = [content for name, content in named if name == "file"]
    fields = [(name, content.decode()) for name, content in named if name != "file"]
    assert images == [b"\x89PNG one", b"\x89PNG one", b"two\r\n--"]
    assert {name: text for name, text in fields if name not in ("return", "blend")} == {
        "batch_size": "2",
        "remainder": "merge",
        "top_k": "3",
        "model": "tiny",
        "compare": "true",
    }
    assert [text for name, text in fields if name == "return"] == ["label", "logits"]
    assert [json.loads(text) for name, text in fields if name == "blend"] == [{"prior": 1.5}]


def test_a_body_too_large_for_the_event_loop_is_the_same(send: Send) -> None:
    rows = np.ones(SMALL_BYTES, np.uint8).reshape(1, 1, 256, -1).repeat(2, 0)
    sent = np.load(io.BytesIO(send(rows, encoding="npy").content), allow_pickle=False)
    np.testing.assert_array_equal(sent, rows)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[1.0], [1.0, 2.0]], "different shapes"),
        ([["a"]], "rows of numbers"),
        (3.0, "rows of numbers"),
        ([[float("nan")]], "finite"),
        ([[1e39]], "finite"),
        (["no-such-file.png"], "no-such-file.png: expected an image file"),
    ],
)
@pytest.mark.parametrize("encoding", ["json", "npy"])
def test_what_cannot_be_sent_is_an_input_error(send: Send, rows: Any, words: str, encoding: str) -> None:
    with pytest.raises(InputError, match=words):
        send(rows, encoding=encoding)


@pytest.mark.parametrize("encoding", ["json", "npy"])
@pytest.mark.parametrize("blend", [{}, {"weight": 1.0}, {"prior": 1, "model": "other"}])
def test_a_blend_of_other_names_is_refused(send: Send, blend: dict, encoding: str) -> None:
    with pytest.raises(ConfigurationError, match="one of: tracked_weight, prior; got "):
        send(ROWS, blend=blend, encoding=encoding)


def test_an_unknown_encoding_is_refused(send: Send) -> None:
    with pytest.raises(ConfigurationError, match="'xml'; choose one of: json, npy"):
        send(ROWS, encoding="xml")


def test_the_key_is_given_or_of_the_environment(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUGSERVE_API_KEY", raising=False)
    assert "Authorization" not in send(ROWS).headers
    assert send(ROWS, api_key="mine").headers["Authorization"] == "Bearer mine"
    monkeypatch.setenv("AUGSERVE_API_KEY", "theirs")
    assert send(ROWS).headers["Authorization"] == "Bearer theirs"
    assert send(ROWS, api_key="mine").headers["Authorization"] == "Bearer mine"
    assert "Authorization" not in send(ROWS, api_key="").headers


@pytest.mark.parametrize("key", ["sec ret", "sec\nret", "secrét"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(key: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigurationError, match="API key") as caught:
            kind("http://tiny", api_key=key)
        assert "sec" not in str(caught.value)


def test_an_address_that_is_none_is_refused() -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigurationError, match=r"expected an address such as http://127\.0\.0\.1:8000"):
            kind("http://tiny\0")
