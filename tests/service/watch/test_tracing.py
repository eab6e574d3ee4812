"""Spans as the SDK's exporter sees them, and nothing at all without a provider."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import Message, Receive, Scope, Send

from augserve.service.watch.metrics import Metrics
from augserve.service.watch.observe import Observe, find_tracing
from augserve.service.watch.tracing import Tracing
from tests.service.observed import QUEUE_S, RUN_S, ask, ask_all, drive, lines_of, make_app

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def server_span(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = [one for one in exporter.get_finished_spans() if one.kind is SpanKind.SERVER]
    return span


def test_a_request_is_a_span_with_its_wait_and_its_run(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    options = {"headers": {"X-Request-ID": "mine", "User-Agent": "test/1"}, "content": b"{}"}
    ask(make_app(tracing=tracing), "POST", "/predict?key=hidden", **options)
    queue, run, server = exporter.get_finished_spans()
    assert [one.name for one in (queue, run, server)] == ["augserve.queue", "augserve.run", "POST /predict"]
    assert server.kind is SpanKind.SERVER
    assert server.parent is None
    assert server.status.status_code is StatusCode.UNSET
    assert dict(server.attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/predict",
        "url.path": "/predict",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "service",
        "client.address": "10.1.2.3",
        "user_agent.original": "test/1",
        "augserve.request_id": "mine",
        "augserve.model": "tiny",
        "augserve.mode": "batch",
        "augserve.rows": 8,
        "augserve.groups": 2,
    }
    for child in (queue, run):
        assert child.parent.span_id == server.context.span_id
        assert child.context.trace_id == server.context.trace_id
    assert queue.end_time == run.start_time
    assert queue.end_time - queue.start_time == int(QUEUE_S * 1e9)
    assert run.end_time - run.start_time == int(RUN_S * 1e9)
    assert run.end_time <= server.end_time


def test_the_callers_trace_goes_on_and_is_in_the_log(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
    (line,) = lines_of(lambda: ask(make_app(tracing=tracing), "POST", "/predict", headers=headers))
    span = server_span(exporter)
    assert trace.format_trace_id(span.context.trace_id) == TRACE_ID == line["trace_id"]
    assert trace.format_span_id(span.parent.span_id) == SPAN_ID
    assert span.parent.is_remote


@pytest.mark.parametrize("given", ["", "nonsense", f"00-{'0' * 32}-{SPAN_ID}-01", "\xff" * 99])
def test_a_malformed_traceparent_begins_a_new_trace(
    tracing: Tracing, exporter: InMemorySpanExporter, given: str
) -> None:
    headers = [(b"traceparent", given.encode("latin-1"))]
    assert ask(make_app(tracing=tracing), "POST", "/predict", headers=headers).status_code == 200
    assert server_span(exporter).parent is None


def test_a_callers_choice_not_to_sample_is_respected(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"}
    assert ask(make_app(tracing=tracing), "POST", "/predict", headers=headers).status_code == 200
    assert exporter.get_finished_spans() == ()


def test_requests_of_one_connection_have_traces_of_their_own(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    ask_all(make_app(tracing=tracing), [("POST", "/predict", {}), ("GET", "/healthz", {})])
    servers = [one for one in exporter.get_finished_spans() if one.kind is SpanKind.SERVER]
    assert [one.parent for one in servers] == [None, None]
    assert len({one.context.trace_id for one in servers}) == 2
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_span_left_over_from_another_request_is_no_parent(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    with TracerProvider(shutdown_on_exit=False).get_tracer("another request").start_as_current_span("old"):
        ask(make_app(tracing=tracing), "POST", "/predict")
    assert server_span(exporter).parent is None


def test_the_span_is_current_inside_of_the_application(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    inside: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        inside.append(trace.get_current_span().get_span_context().span_id)
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    ask(Observe(app, Metrics(), tracing), "GET", "/")
    span = server_span(exporter)
    assert inside == [span.context.span_id]
    assert span.name == "GET"  # no route: the path would make a name for each request


@pytest.mark.parametrize(
    ("path", "name", "status", "error"),
    [
        ("/models/tiny", "GET /models/{name}", 200, None),
        ("/full", "GET /full", 429, None),
        ("/broken", "GET /broken", 500, "KeyError"),
        ("/nowhere", "GET", 404, None),
    ],
)
def test_names_are_routes_and_only_the_servers_own_faults_are_errors(
    tracing: Tracing, exporter: InMemorySpanExporter, path: str, name: str, status: int, error: str | None
) -> None:
    ask(make_app(tracing=tracing), "GET", path)
    span = server_span(exporter)
    assert (span.name, span.attributes["http.response.status_code"]) == (name, status)
    assert span.attributes.get("error.type") == error
    assert span.status.status_code is (StatusCode.ERROR if error else StatusCode.UNSET)


def test_a_method_that_is_none_makes_no_name(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    ask(make_app(tracing=tracing), "BREW", "/predict")
    span = server_span(exporter)
    assert span.name.split()[0] == "HTTP"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "BREW"


def test_a_caller_that_leaves_is_no_fault_of_the_server(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    asyncio.run(drive(Observe(app, Metrics(), tracing), receive, send))
    span = server_span(exporter)
    assert span.attributes["error.type"] == "client_disconnected"
    assert "http.response.status_code" not in span.attributes
    assert span.status.status_code is StatusCode.UNSET


def test_a_sampler_that_takes_nothing_changes_no_answer() -> None:
    tracing = Tracing(TracerProvider(ALWAYS_OFF, shutdown_on_exit=False))
    assert ask(make_app(tracing=tracing), "POST", "/predict").status_code == 200


def test_a_provider_that_fails_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(trace.TracerProvider):
        def get_tracer(self, *_: object, **__: object) -> trace.Tracer:
            raise RuntimeError("broken")

    assert ask(make_app(tracing=Tracing(Broken())), "POST", "/predict").status_code == 200
    assert any(one.name == "augserve.service.watch.observe" and one.exc_info for one in caplog.records)


def test_without_a_provider_there_is_no_span() -> None:
    tracing = find_tracing()
    assert tracing is not None
    assert tracing.begin({"headers": []}) is None
    assert Tracing(trace.NoOpTracerProvider()).begin({"headers": []}) is None
    (line,) = lines_of(lambda: ask(make_app(tracing=tracing), "POST", "/predict"))
    assert "trace_id" not in line


def test_a_provider_configured_later_is_found() -> None:
    """In a process of its own: the global provider can be set once."""
    script = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from augserve.service.watch.observe import find_tracing
from tests.service.observed import ask, make_app
app = make_app(tracing=find_tracing())
ask(app, "POST", "/predict")
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
ask(app, "POST", "/predict")
print([one.name for one in exporter.get_finished_spans()])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "['augserve.queue', 'augserve.run', 'POST /predict']"


def test_without_opentelemetry_the_service_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "augserve.service.watch.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert find_tracing() is None
