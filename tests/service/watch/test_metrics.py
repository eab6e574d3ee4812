"""What is counted, read back with the parsers of prometheus-client; labels stay bounded."""

from __future__ import annotations

import threading

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from augserve import __version__
from augserve.service.watch.metrics import COUNTS, Metrics
from tests.service.observed import ask, ask_all, make_app, sample

NAMES = {
    "augserve_requests",
    "augserve_rows",
    "augserve_request_seconds",
    "augserve_queue_seconds",
    "augserve_run_seconds",
    "augserve_rows_per_run",
    "augserve_requests_per_run",
    "augserve_group_rows",
    "augserve_run_errors",
    "augserve_queue_depth",
    "augserve_model_loaded",
    "augserve_ready",
    "augserve_ready_timestamp_seconds",
    "augserve_build",
}


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics()
    made.loaded("tiny", "1")
    return made


def fill(metrics: Metrics) -> None:
    metrics.request("tiny", "batch", 200, 0.004, rows=8)
    metrics.queued("tiny", 0.001)
    metrics.run("tiny", 2, 16, [8, 8], 0.003)
    metrics.run_error("tiny")


def test_counters_are_sums_of_what_was_counted(metrics: Metrics) -> None:
    for status, rows in [(200, 8), (200, 3), (422, 5), (499, 7)]:
        metrics.request("tiny", "batch", status, 0.02, rows=rows)
    metrics.request("tiny", "tracked", 200, 0.02, rows=1)
    batch = {"model": "tiny", "mode": "batch"}
    assert sample(metrics, "augserve_requests_total", **batch, status="200") == 2
    assert sample(metrics, "augserve_requests_total", **batch, status="422") == 1
    assert sample(metrics, "augserve_requests_total", **batch, status="499") == 1
    assert sample(metrics, "augserve_rows_total", **batch) == 11
    assert sample(metrics, "augserve_rows_total", model="tiny", mode="tracked") == 1
    assert sample(metrics, "augserve_request_seconds_count", **batch) == 4
    assert sample(metrics, "augserve_request_seconds_sum", **batch) == pytest.approx(0.08)
    assert sample(metrics, "augserve_request_seconds_bucket", **batch, le="0.01") == 0
    assert sample(metrics, "augserve_request_seconds_bucket", **batch, le="0.025") == 4


def test_runs_count_requests_rows_and_seconds(metrics: Metrics) -> None:
    metrics.run("tiny", 3, 20, [8, 8, 4], 0.5)
    metrics.run("tiny", 1, 1, [], 0.25)
    metrics.queued("tiny", 0.125)
    metrics.run_error("tiny")
    for name, total, count in [
        ("augserve_requests_per_run", 4, 2),
        ("augserve_rows_per_run", 21, 2),
        ("augserve_run_seconds", 0.75, 2),
        ("augserve_queue_seconds", 0.125, 1),
    ]:
        assert sample(metrics, f"{name}_sum", model="tiny") == total
        assert sample(metrics, f"{name}_count", model="tiny") == count
    assert sample(metrics, "augserve_run_errors_total", model="tiny") == 1


def test_group_sizes_are_counted_one_by_one(metrics: Metrics) -> None:
    sizes = [1, 1, 2, 3, 8, 8, 8, 100, 5000]
    metrics.run("tiny", 1, sum(sizes), sizes[:5], 0.1)
    metrics.run("tiny", 1, sum(sizes), sizes[5:], 0.1)
    for bound in COUNTS:
        at_most = sum(size <= bound for size in sizes)
        assert sample(metrics, "augserve_group_rows_bucket", model="tiny", le=str(bound)) == at_most
    assert sample(metrics, "augserve_group_rows_bucket", model="tiny", le="+Inf") == len(sizes)
    assert sample(metrics, "augserve_group_rows_sum", model="tiny") == sum(sizes)


def test_strangers_make_no_labels(metrics: Metrics) -> None:
    for i in range(50):
        metrics.request(f"made-up-{i}", f"mode-{i}", 404, 0.001)
        metrics.queued(f"made-up-{i}", 0.001)
        metrics.run(f"made-up-{i}", 1, 1, [1], 0.001)
        metrics.run_error(f"made-up-{i}")
    metrics.request(None, None, 404, 0.001)
    body, _ = metrics.render()
    assert b"made-up" not in body
    assert b"mode-" not in body
    assert sample(metrics, "augserve_requests_total", model="unknown", mode="", status="404") == 50
    assert sample(metrics, "augserve_requests_total", model="", mode="", status="404") == 1


def test_unloaded_models_keep_their_counts_and_lose_their_gauge(metrics: Metrics) -> None:
    fill(metrics)
    metrics.loaded("tiny", "2")
    metrics.unloaded("tiny", "1")
    metrics.unloaded("tiny", "1")
    metrics.unloaded("never", "1")
    assert sample(metrics, "augserve_model_loaded", model="tiny", version="1") is None
    assert sample(metrics, "augserve_model_loaded", model="tiny", version="2") == 1
    assert sample(metrics, "augserve_model_loaded", model="never", version="1") is None
    assert sample(metrics, "augserve_requests_total", model="tiny", mode="batch", status="200") == 1


def test_run_errors_start_at_zero(metrics: Metrics) -> None:
    assert sample(metrics, "augserve_run_errors_total", model="tiny") == 0


def test_watched_values_are_asked_for_at_each_reading(metrics: Metrics) -> None:
    waiting: list[int] = []
    states = iter([False, True])
    metrics.watch_queue(lambda: len(waiting))
    assert sample(metrics, "augserve_queue_depth") == 0
    waiting.extend([1, 2, 3])
    assert sample(metrics, "augserve_queue_depth") == 3
    metrics = Metrics()
    metrics.watch_ready(lambda: next(states))
    assert [sample(metrics, "augserve_ready") for _ in range(2)] == [0, 1]


def test_ready_is_noted_once(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sample(metrics, "augserve_ready_timestamp_seconds") == 0
    times = iter([1000.5, 2000.5])
    monkeypatch.setattr("augserve.service.watch.metrics.time.time", lambda: next(times))
    metrics.ready()
    metrics.ready()
    assert sample(metrics, "augserve_ready_timestamp_seconds") == 1000.5


def test_two_applications_count_apart(metrics: Metrics) -> None:
    other = Metrics()
    fill(metrics)
    assert sample(other, "augserve_requests_total", model="tiny", mode="batch", status="200") is None


def test_threads_lose_no_count(metrics: Metrics) -> None:
    def count() -> None:
        for _ in range(500):
            metrics.request("tiny", "batch", 200, 0.01, rows=2)
            metrics.run("tiny", 1, 2, [2], 0.01)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sample(metrics, "augserve_rows_total", model="tiny", mode="batch") == 4000
    assert sample(metrics, "augserve_group_rows_sum", model="tiny") == 4000
    assert sample(metrics, "augserve_rows_per_run_count", model="tiny") == 2000


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1", True),
        ("application/openmetrics-text;q=0.3, text/plain;q=0.4", False),
        ("application/openmetrics-text;q=0", False),
        ("Application/OpenMetrics-Text; version=abc; escaping=nonsense; q=nonsense", True),
        (";;;,,,q=1;=", False),
    ],
)
def test_both_formats_are_what_their_parsers_read(metrics: Metrics, accept: str, openmetrics: bool) -> None:
    fill(metrics)
    response = ask(make_app(metrics), "GET", "/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    kind = "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
    assert response.headers["content-type"] == f"{kind}; charset=utf-8"
    families = {one.name: one for one in (parse_openmetrics if openmetrics else parse_text)(response.text)}
    suffixed = {name.removesuffix("_info") for name in families}
    assert suffixed >= NAMES
    assert any(one.labels.get("version") == __version__ for family in families.values() for one in family.samples)
    sizes = {one.labels.get("le"): one.value for one in families["augserve_group_rows"].samples}
    assert (sizes["4.0"], sizes["8.0"], sizes["+Inf"]) == (0, 2, 2)


def test_requests_are_counted_as_they_are_answered(metrics: Metrics) -> None:
    requests = [
        ("POST", "/predict", {}),
        ("POST", "/predict", {"headers": {"model": "stranger"}}),
        ("GET", "/full", {}),
        ("GET", "/broken", {}),
        ("GET", "/nowhere", {}),
    ]
    assert [one.status_code for one in ask_all(make_app(metrics), requests)] == [200, 200, 429, 500, 404]
    assert sample(metrics, "augserve_requests_total", model="tiny", mode="batch", status="200") == 1
    assert sample(metrics, "augserve_requests_total", model="unknown", mode="batch", status="200") == 1
    for status in ("429", "500", "404"):
        assert sample(metrics, "augserve_requests_total", model="", mode="", status=status) == 1
    assert sample(metrics, "augserve_rows_total", model="tiny", mode="batch") == 8
