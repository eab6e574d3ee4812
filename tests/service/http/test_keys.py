"""Who passes and who does not; and that a key is never seen again."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from augserve.errors import ConfigurationError, InvalidApiKeyError, MissingApiKeyError
from augserve.service.http.keys import ApiKeys, Guard, read_api_keys
from tests.service.observed import ask, make_app

ALICE, BOB = "correct-horse-battery", "tr0ub4dor-and-three"
OPEN = ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"]

visible = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64)


@pytest.fixture
def keys() -> ApiKeys:
    return ApiKeys([("alice", ALICE), ("bob", BOB)])


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ([("X-API-Key", ALICE)], "alice"),
        ([("Authorization", f"Bearer {BOB}")], "bob"),
        ([("authorization", f"bEARER   {BOB} ")], "bob"),
        ([("Authorization", "Basic dXNlcg=="), ("X-API-Key", ALICE)], "alice"),
        ([("Authorization", "Bearer of-a-proxy"), ("X-API-Key", ALICE)], "alice"),
    ],
)
def test_a_key_names_its_caller(keys: ApiKeys, headers: list[tuple[str, str]], name: str) -> None:
    raw = [(key.lower().encode(), value.encode()) for key, value in headers]
    assert keys.caller_of(raw) == name
    assert ask(make_app(keys=keys), "POST", "/predict", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": ALICE},
        {"Authorization": f"Basic {ALICE}"},
        {"Api-Key": ALICE},
        {"Cookie": f"x-api-key={ALICE}"},
    ],
)
def test_no_key_is_401_and_says_how_to_send_one(keys: ApiKeys, headers: dict[str, str]) -> None:
    response = ask(make_app(keys=keys), "POST", "/predict", headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert set(response.json()) == {"error", "code"}
    assert response.json()["code"] == "missing_api_key"
    assert "Bearer KEY" in response.json()["error"]
    assert "x-request-id" in response.headers


@pytest.mark.parametrize(
    "key", [ALICE[:-1], ALICE + "x", ALICE.upper(), f"alice:{ALICE}", f"{ALICE},{BOB}", "\xff"]
)
@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
def test_a_wrong_key_is_403_and_is_not_repeated(keys: ApiKeys, header: str, key: str) -> None:
    value = key if header == "X-API-Key" else f"Bearer {key}"
    response = ask(make_app(keys=keys), "POST", "/predict", headers=[(header.encode(), value.encode("latin-1"))])
    assert response.status_code == 403
    assert response.json()["code"] == "invalid_api_key"
    assert key not in response.text
    assert "WWW-Authenticate" not in response.headers


@given(st.lists(visible, min_size=1, max_size=6, unique=True), visible)
def test_exactly_the_keys_given_are_taken(known: list[str], other: str) -> None:
    keys = ApiKeys([(f"caller-{i}", key) for i, key in enumerate(known)])
    for i, key in enumerate(known):
        assert keys.caller_of([(b"x-api-key", key.encode())]) == f"caller-{i}"
    if other not in known:
        with pytest.raises(InvalidApiKeyError):
            keys.caller_of([(b"x-api-key", other.encode())])


def test_every_key_is_compared_whichever_matches(keys: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", compare)
    counts = []
    for key in (ALICE, BOB):
        compared.clear()
        keys.caller_of([(b"x-api-key", key.encode())])
        counts.append(len(compared))
        assert all(len(left) == len(right) == hashlib.sha256().digest_size for left, right in compared)
    compared.clear()
    with pytest.raises(InvalidApiKeyError):
        keys.caller_of([(b"x-api-key", b"none of them")])
    assert [*counts, len(compared)] == [2, 2, 2]


@pytest.mark.parametrize("path", OPEN)
def test_probes_need_no_key(keys: ApiKeys, path: str) -> None:
    assert ask(make_app(keys=keys), "GET", path).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/docs", "/openapi.json", "/nowhere", "/healthz/", "//healthz", "/v2/health", "/HEALTHZ", "/"],
)
def test_everything_else_needs_one(keys: ApiKeys, path: str) -> None:
    assert ask(make_app(keys=keys), "GET", path).status_code == 401
    assert ask(make_app(keys=keys), "GET", path, headers={"X-API-Key": ALICE}).status_code in {200, 404}


def test_metrics_are_open_where_a_setting_says_so(keys: ApiKeys) -> None:
    assert ask(make_app(keys=keys, metrics_open=True), "GET", "/metrics").status_code == 200
    assert ask(make_app(keys=keys, metrics_open=True), "GET", "/docs").status_code == 401


def test_a_path_below_a_proxys_is_known_too(keys: ApiKeys) -> None:
    def status(**scope: object) -> int:
        sent: list[Message] = []

        async def go() -> None:
            async def send(message: Message) -> None:
                sent.append(message)

            await Guard(_fine, keys)({"type": "http", "headers": [], **scope}, _nothing, send)

        asyncio.run(go())
        return sent[0]["status"]

    assert status(path="/api/healthz", root_path="/api") == 200
    assert status(path="/healthz", root_path="/api") == 200
    assert status(path="/api/predict", root_path="/api") == 401
    assert status(path="/apihealthz", root_path="/api") == 401


def test_websockets_are_closed_and_the_lifespan_passes(keys: ApiKeys) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def go() -> None:
        await Guard(_fine, keys)({"type": "websocket", "path": "/healthz", "headers": []}, _nothing, send)
        await Guard(_fine, keys)({"type": "lifespan"}, _nothing, send)

    asyncio.run(go())
    assert [one["type"] for one in sent] == ["websocket.close", "http.response.start"]


def test_a_file_and_the_environment_add_up(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# our callers\n\n  alice:{ALICE}  \n{BOB}\ncarol:with:a:colon-in-it\n")
    file.chmod(0o600)
    environ = {"AUGSERVE_API_KEYS": "dave:dave-key-dave-key, erin-key-erin-key"}
    keys = read_api_keys(file, environ)
    assert keys is not None
    names = {
        key: keys.caller_of([(b"x-api-key", key.encode())])
        for key in (ALICE, BOB, "with:a:colon-in-it", "dave-key-dave-key", "erin-key-erin-key")
    }
    assert list(names.values()) == ["alice", "key-2", "carol", "dave", "key-5"]


def test_a_caller_may_change_keys_with_both_in_force() -> None:
    keys = ApiKeys([("alice", ALICE), ("alice", BOB)])
    assert [keys.caller_of([(b"x-api-key", key.encode())]) for key in (ALICE, BOB)] == ["alice", "alice"]


def test_no_keys_given_means_none_asked_for() -> None:
    assert read_api_keys(None, {}) is None
    assert read_api_keys(None, {"AUGSERVE_API_KEYS": ""}) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at least one API key"),
        ("# nothing\n\n", "at least one API key"),
        ("alice:", "API key of 1 to 512"),
        (f"alice:{ALICE} {BOB}", "without spaces"),
        (f"al ice:{ALICE}", "name"),
        (f":{ALICE}", "name"),
        (f"alice:{ALICE}\nbob:{ALICE}", "'bob' has the key of another"),
        ("alice:" + "x" * 513, "512"),
        (f"{ALICE}é", "visible ASCII"),
    ],
)
def test_a_bad_file_is_refused_without_telling_a_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_api_keys(file, {})
    assert ALICE not in str(caught.value)
    assert BOB not in str(caught.value)


@pytest.mark.parametrize("text", [",", " , "])
def test_a_variable_without_a_key_does_not_open_the_server(text: str) -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        read_api_keys(None, {"AUGSERVE_API_KEYS": text})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing.*No such file"):
        read_api_keys(tmp_path / "missing", {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"binary.*UTF-8"):
        read_api_keys(tmp_path / "binary", {})


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, False), (0o600, False)])
def test_a_file_that_everybody_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice:{ALICE}\n")
    file.chmod(mode)
    read_api_keys(file, {})
    assert any(str(file) in one.getMessage() for one in caplog.records) == warned
    assert ALICE not in caplog.text


def test_a_short_key_is_warned_of_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    ApiKeys([("alice", "horse-15-battry")])
    assert "'alice'" in caplog.text
    assert "horse" not in caplog.text


def test_keys_are_in_no_repr_and_no_traceback(keys: ApiKeys) -> None:
    assert repr(keys) == "ApiKeys(names=['alice', 'bob'])"
    texts = [repr(keys), str(vars(keys))]
    for headers in ([], [(b"x-api-key", BOB[:-1].encode())]):
        with pytest.raises((MissingApiKeyError, InvalidApiKeyError)) as caught:
            keys.caller_of(headers)
        texts.append("".join(traceback.format_exception(caught.value)))
    assert not any(ALICE in text or BOB[:-1] in text for text in texts)


async def _fine(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200})


async def _nothing() -> Message:
    raise AssertionError("nobody reads here")
