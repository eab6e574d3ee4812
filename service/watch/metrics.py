"""What the service counts, for Prometheus.

Labels are bounded: a model's name is a label once it was loaded here, any other name counts as "unknown". A request
that concerns no model (/readyz, a path that is not there, one refused before it named a model) has the model "".
"""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from typing_extensions import override

from augserve import __version__

UNKNOWN = "unknown"
MODES = ("tracked", "batch", "blend")
OPENMETRICS = "application/openmetrics-text"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)


class Metrics:
    """The counters of one application, in a registry of its own; safe in any thread.

    Example:
        >>> metrics = Metrics()
        >>> metrics.loaded("resnet20", "1")
        >>> metrics.request("resnet20", "tracked", 200, 0.004, rows=1)
        >>> body, content_type = metrics.render()
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "augserve_requests", "Requests answered.", ["model", "mode", "status"], registry=registry
        )
        self._rows = Counter(
            "augserve_rows", "Rows of requests answered below 400.", ["model", "mode"], registry=registry
        )
        self._seconds = Histogram(
            "augserve_request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ["model", "mode"],
            buckets=SECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "augserve_queue_seconds",
            "Seconds that a request waited for its run.",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self._run_seconds = Histogram(
            "augserve_run_seconds", "Seconds of a run of the model.", ["model"], buckets=SECONDS, registry=registry
        )
        self._run_rows = Histogram(
            "augserve_rows_per_run", "Rows of a run of the model.", ["model"], buckets=COUNTS, registry=registry
        )
        self._run_requests = Histogram(
            "augserve_requests_per_run",
            "Requests, or parts of one, in a run of the model.",
            ["model"],
            buckets=COUNTS,
            registry=registry,
        )
        self._run_errors = Counter(
            "augserve_run_errors", "Runs of the model that failed.", ["model"], registry=registry
        )
        self._group_rows = _GroupRows()
        registry.register(self._group_rows)
        self._models = Gauge(
            "augserve_model_loaded", "1 for each model served.", ["model", "version"], registry=registry
        )
        self._depth = Gauge("augserve_queue_depth", "Requests that wait for their run.", registry=registry)
        self._ready = Gauge("augserve_ready", "1 while requests are taken.", registry=registry)
        self._ready_since = Gauge(
            "augserve_ready_timestamp_seconds",
            "When requests were first taken, in seconds since 1970; 0 before.",
            registry=registry,
        )
        Info("augserve_build", "The version of augserve.", registry=registry).info({"version": __version__})
        ProcessCollector(registry=registry)
        self._known: set[str] = set()
        self._was_ready = False
        # What labels() returns, by label: a look-up there costs four times as much as counting.
        self._counts: dict[tuple[str, str, int], Counter] = {}
        self._answers: dict[tuple[str, str], tuple[Histogram, Counter]] = {}
        self._waits: dict[str, Histogram] = {}
        self._runs: dict[str, tuple[Histogram, Histogram, Histogram]] = {}

    def request(self, model: str | None, mode: str | None, status: int, seconds: float, rows: int = 0) -> None:
        """Count an answer.

        Args:
            model: the name that the request meant; None where it meant none.
            mode: the statistics mode; anything but tracked, batch and blend counts as "".
            status: the HTTP status; 499 where the caller left.
            seconds: from the request's headers to the end of its answer.
            rows: rows of the request, counted where the status is below 400.
        """
        model = self._label(model)
        mode = mode if mode in MODES else ""
        count = self._counts.get((model, mode, status))
        if count is None:
            count = self._counts[model, mode, status] = self._requests.labels(model, mode, str(status))
        count.inc()
        pair = self._answers.get((model, mode))
        if pair is None:
            labels = (model, mode)
            pair = self._answers[labels] = self._seconds.labels(*labels), self._rows.labels(*labels)
        pair[0].observe(seconds)
        if rows and status < 400:
            pair[1].inc(rows)

    def queued(self, model: str, seconds: float) -> None:
        """Count the time that a request waited for its run."""
        model = self._label(model)
        wait = self._waits.get(model)
        if wait is None:
            wait = self._waits[model] = self._queue.labels(model)
        wait.observe(seconds)

    def run(self, model: str, requests: int, rows: int, group_sizes: Sequence[int], seconds: float) -> None:
        """Count a run of the model.

        Args:
            model: its name.
            requests: requests, or parts of one, that the run answered.
            rows: rows of the run.
            group_sizes: rows of each statistics group; empty where every row is normalised by tracked statistics.
            seconds: what the run took.
        """
        model = self._label(model)
        trio = self._runs.get(model)
        if trio is None:
            kinds = self._run_requests, self._run_rows, self._run_seconds
            trio = self._runs[model] = kinds[0].labels(model), kinds[1].labels(model), kinds[2].labels(model)
        trio[0].observe(requests)
        trio[1].observe(rows)
        trio[2].observe(seconds)
        if group_sizes:
            self._group_rows.observe(model, group_sizes)

    def run_error(self, model: str) -> None:
        """Count a run of the model that failed."""
        self._run_errors.labels(self._label(model)).inc()

    def loaded(self, model: str, version: str) -> None:
        """Count a model as served; from now on its name is a label."""
        self._known.add(model)
        self._models.labels(model, version).set(1)
        self._run_errors.labels(model)  # 0 from the start, so that the first error is seen as a rise

    def unloaded(self, model: str, version: str) -> None:
        """Count a model as no longer served; what was counted for it stays."""
        self._models.labels(model, version)  # remove() asks for one that is there
        self._models.remove(model, version)

    def ready(self) -> None:
        """Note the moment at which requests are first taken; later calls change nothing."""
        if not self._was_ready:
            self._was_ready = True
            self._ready_since.set(time.time())

    def watch_queue(self, depth: Callable[[], float]) -> None:
        """Ask `depth` for the number of waiting requests whenever the metrics are read."""
        self._depth.set_function(depth)

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """Ask `ready` whether requests are taken whenever the metrics are read."""
        self._ready.set_function(lambda: float(ready()))

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics and their content type.

        Args:
            accept: the header Accept; OpenMetrics where it is preferred, else the text format of Prometheus.
        """
        # What came is not handed on: a version in it would come back in the content type.
        encode, content_type = choose_encoder(OPENMETRICS if _prefers_openmetrics(accept) else "")
        return encode(self.registry), content_type

    def _label(self, model: str | None) -> str:
        return (model if model in self._known else UNKNOWN) if model else ""


class _GroupRows(Collector):
    """A histogram of group sizes by model that takes all groups of a run at once.

    A run may have a thousand groups, nearly always of few sizes: equal ones are tallied, then counted together.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, int] = {}

    def observe(self, model: str, sizes: Sequence[int]) -> None:
        """Count groups of these sizes."""
        tally = Tally(sizes)
        with self._lock:
            counts = self._counts.setdefault(model, [0] * (len(COUNTS) + 1))
            for size, times in tally.items():
                counts[bisect_left(COUNTS, size)] += times
            self._sums[model] = self._sums.get(model, 0) + sum(sizes)

    @override
    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily("augserve_group_rows", "Rows of a statistics group.", labels=["model"])
        with self._lock:
            for model, counts in self._counts.items():
                bounds = [*map(str, COUNTS), "+Inf"]
                buckets = list(zip(bounds, map(float, accumulate(counts)), strict=True))
                family.add_metric([model], buckets, float(self._sums[model]))
        yield family


def _prefers_openmetrics(accept: str) -> bool:
    """Tell whether a header Accept weighs OpenMetrics at least as much as plain text."""
    weights = {OPENMETRICS: 0.0, "text/plain": 0.0}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        if kind in weights:
            weights[kind] = max(weights[kind], _quality(parameters))
    return 0 < weights[OPENMETRICS] >= weights["text/plain"]


def _quality(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        if match := re.fullmatch(r"q\s*=\s*([01](?:\.\d{0,3})?)", parameter):
            return float(match[1])
    return 1.0
