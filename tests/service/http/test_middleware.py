"""What an embedder adds to the application sees POST /predict as it sees any route."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from augserve.errors import InputError
from augserve.service import create_app, read_settings
from tests.service.tiny import some_rows

PREDICT, INFER = "/predict", "/v2/models/tiny/infer"
TENSOR = {"name": "input", "shape": [2, 3, 8, 8], "datatype": "FP32", "data": some_rows(2).ravel().tolist()}
QUESTIONS = {PREDICT: {"instances": some_rows(2).tolist()}, INFER: {"inputs": [TENSOR]}}


class Stamp:
    """Notes what passes and puts a header on every answer."""

    def __init__(self, app: ASGIApp, seen: list[tuple[str, int]]) -> None:
        self.app, self.seen = app, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen.append((scope["path"], message["status"]))
                message["headers"] = [*message["headers"], (b"x-stamp", b"1")]
            await send(message)

        await self.app(scope, receive, stamped if scope["type"] == "http" else send)


@pytest.fixture
def app(model: Path) -> FastAPI:
    made = create_app(read_settings(model=model, threads=1))
    made.state.service.load()
    return made


def ask(app: FastAPI, *requests: tuple[str, str, object]) -> list[httpx.Response]:
    """The answers to requests, of method, path and JSON each."""

    async def go() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny") as client:
            return [await client.request(method, path, json=body) for method, path, body in requests]

    return asyncio.run(go())


def test_middleware_sees_questions_answers_and_refusals(app: FastAPI) -> None:
    seen: list[tuple[str, int]] = []
    app.add_middleware(Stamp, seen=seen)
    for path, question in QUESTIONS.items():
        answers = ask(
            app, ("POST", path, question), ("POST", path, {}), ("GET", "/models", None), ("GET", path, None)
        )
        assert [answer.status_code for answer in answers] == [200, 422, 200, 405]
        assert [answer.headers["x-stamp"] for answer in answers] == ["1"] * 4
        assert seen == [(path, 200), (path, 422), ("/models", 200), (path, 405)]
        seen.clear()


def test_a_function_around_requests_may_answer_in_their_place(app: FastAPI) -> None:
    @app.middleware("http")
    async def closed(request: Request, call_next: object) -> JSONResponse:
        return JSONResponse({"closed": request.url.path}, 418)

    for path, question in QUESTIONS.items():
        assert [answer.json() for answer in ask(app, ("POST", path, question))] == [{"closed": path}]


def test_an_error_handler_of_the_embedder_answers(app: FastAPI) -> None:
    @app.exception_handler(InputError)
    async def own(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"own": str(error)}, 400)

    for path, question in ((PREDICT, {"instances": []}), (INFER, {"inputs": []})):
        (answer,) = ask(app, ("POST", path, question))
        assert (answer.status_code, list(answer.json())) == (400, ["own"])


def test_the_route_is_known_behind_it(app: FastAPI) -> None:
    routes: list[str] = []

    @app.middleware("http")
    async def noted(request: Request, call_next: object) -> object:
        response = await call_next(request)  # type: ignore[operator]
        routes.append(request.scope["route"].path)
        return response

    answers = ask(app, *(("POST", path, question) for path, question in QUESTIONS.items()))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert routes == [PREDICT, "/v2/models/{model}/infer"]
