"""The clients, against a real server."""

from __future__ import annotations

import asyncio
import io
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from augserve.client import AsyncClient, Client, RefusedError
from augserve.errors import RemoteError
from tests.service.tiny import expected_logits, running, some_rows


@pytest.fixture(scope="module")
def client(server: httpx.Client) -> Client:
    with Client(str(server.base_url)) as client:
        yield client


def picture(path: Path, shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 2 * shade, 255 - shade)).save(data, "PNG")
    path.write_bytes(data.getvalue())
    return data.getvalue()


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, [1, 1]),
        ({"tracking": None}, [1, 1]),
        ({"tracking": False}, [0, 0]),
        ({"blend": {"tracked_weight": 0.5}}, [0.5, 0.5]),
        ({"blend": {"prior": 1}}, [0.25, 0.5]),
    ],
)
def test_rows_are_answered_as_asked(client: Client, settings: dict, weights: list) -> None:
    rows = some_rows(4)
    for given in (rows, rows.astype(np.float64), rows.tolist()):
        answer = client.predict(given, 3, returns=["logits"], **settings)
        logits = [one["logits"] for one in answer["predictions"]]
        expected = expected_logits(rows, [[0, 1, 2], [3]], weights)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_images_may_be_paths_or_bytes(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    data = picture(path, 10)
    answer = client.predict([path, str(path), data], top_k=2, remainder="merge", batch_size=2)
    assert answer["predictions"][0] == answer["predictions"][1] == answer["predictions"][2]
    assert len(answer["predictions"][0]["top_k"]) == 2
    assert answer["statistics"]["groups"] == [3]
    assert client.predict(path)["predictions"] == client.predict(data)["predictions"]
    blended = client.predict([path, path], blend={"prior": 2}, returns=["label"])
    assert blended["statistics"]["tracked_weight"] == [0.5]
    assert set(blended["predictions"][0]) == {"index", "label", "probability"}


@pytest.mark.parametrize("settings", [{}, {"tracking": False, "batch_size": 2}, {"blend": {"prior": 3.0}}])
def test_every_encoding_gives_the_same_answer(client: Client, settings: dict) -> None:
    rows = some_rows(5)
    asked = {"returns": ["logits"], "top_k": 2, **settings}
    as_json, as_npy = (client.predict(rows, encoding=encoding, **asked) for encoding in ("json", "npy"))
    assert as_json["predictions"] == as_npy["predictions"]
    assert as_json["statistics"] == as_npy["statistics"]


def test_many_at_a_time_get_their_own_answers(client: Client) -> None:
    batches = [some_rows(n, seed=n) for n in range(1, 9)]

    async def ask() -> list[dict]:
        async with AsyncClient(client.url) as many:
            assert await many.ready()
            return await asyncio.gather(*(many.predict(b, tracking=False, returns=["logits"]) for b in batches))

    for rows, answer in zip(batches, asyncio.run(ask()), strict=True):
        expected = expected_logits(rows, [list(range(len(rows)))], [0])
        logits = [one["logits"] for one in answer["predictions"]]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_models_are_listed_and_named(client: Client) -> None:
    (told,) = client.models()
    assert told["state"] == "READY"

    async def ask() -> list[dict]:
        async with AsyncClient(client.url) as other:
            return await other.models()

    assert asyncio.run(ask()) == [told]
    assert client.predict(some_rows(1), model=told["name"])["model"] == told["name"]
    with pytest.raises(RefusedError, match=r"404.*'nobody'") as caught:
        client.predict(some_rows(1), model="nobody")
    assert (caught.value.status, caught.value.code) == (404, "unknown_model")


@pytest.mark.parametrize("encoding", ["json", "npy"])
def test_compare_gives_the_tracked_prediction_beside(client: Client, encoding: str) -> None:
    rows = some_rows(8)
    answer = client.predict(rows, tracking=False, compare=True, encoding=encoding)
    own, tracked = (client.predict(rows, tracking=mode)["predictions"] for mode in (False, True))
    beside = [one.pop("tracked")["label"] for one in answer["predictions"]]
    assert answer["predictions"] == own
    assert beside == [one["label"] for one in tracked]
    differing = [k for k in range(8) if own[k]["label"] != tracked[k]["label"]]
    assert differing  # else this test would show nothing
    assert answer["comparison"]["rows"] == differing
    assert "comparison" not in client.predict(rows, tracking=False, encoding=encoding)


def test_ready_is_what_the_server_says(client: Client) -> None:
    assert client.ready()
    with socket.create_server(("127.0.0.1", 0)) as free:
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
    for url in (gone, client.url + "/docs"):
        with Client(url) as other:
            assert not other.ready()
    with Client("127.0.0.1:8000") as other, pytest.raises(RemoteError, match="could not reach"):
        other.ready()


def test_refusal_holds_the_server_s_words(client: Client) -> None:
    with pytest.raises(RemoteError, match=r"422: expected rows of shape \(N, 3, 8, 8\)"):
        client.predict(np.zeros((1, 1, 8, 8)))
    with pytest.raises(RemoteError, match="415: row 0: expected a PNG"):
        client.predict(b"text")
    with pytest.raises(RemoteError, match="422: remainder"):
        client.predict(some_rows(1), remainder="pad")


def test_server_that_is_not_there_is_one_clear_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", "127.0.0.1:8000", "ftp://127.0.0.1", "http://[", "http://"):
        with Client(url, retries=0) as client, pytest.raises(RemoteError, match="could not reach") as caught:
            client.predict(some_rows(1))
        assert "\n" not in str(caught.value)


def test_slow_server_is_one_clear_line() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout_s=0.1) as client, pytest.raises(RemoteError, match="did not answer in time"):
            client.predict(some_rows(1))


def test_server_of_another_kind_is_named(model: Path) -> None:
    with (
        running(model) as http,
        Client(str(http.base_url.copy_with(path="/docs"))) as client,
        pytest.raises(RemoteError, match="404"),
    ):
        client.predict(some_rows(1))
