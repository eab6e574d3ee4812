"""From rows and settings to an answer, without HTTP: what every protocol and `augserve predict` stand on.

`predict` is three steps, so that a server can give each its own thread: prepare (checks and groups), run (the
model), answer (labels and probabilities).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from augserve.errors import ConfigurationError, InputError, StatisticsError, UnknownModelError
from augserve.manifest import Manifest
from augserve.runtime import check_rows, rows_with_own_statistics, softmax
from augserve.service.isolation import Groups, Piece, cut, group_rows, merge
from augserve.service.model.graph import Form
from augserve.service.model.lone_runs import rows_on_one_core
from augserve.service.model.opening import Opening, open_forms
from augserve.service.model.run_size import fitting_rows
from augserve.service.schemas import (
    Answer,
    Comparison,
    Prediction,
    PredictSettings,
    StatisticsUsed,
    Timing,
    TopClass,
)
from augserve.statistics import Statistics

TRACKED, BATCH = Statistics("tracked"), Statistics("batch")

Logits = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]


class Job(NamedTuple):
    """A request that passed every check: kept rows float32 (K, C, H, W), their groups, and what is wanted."""

    rows: npt.NDArray[np.float32]
    groups: Groups
    statistics: Statistics
    settings: PredictSettings


class Predictor:
    """One open version of a model.

    Args:
        adaptive: the form that takes every mode of the file.
        manifest: what the file says about itself.
        name: the model's name in requests and answers.
        version: the version's name.
        tracked: the form for requests with tracked statistics; None means the same.

    Example:
        >>> predictor = Predictor.open("model.onnx")
        >>> answer = predictor.predict(rows, PredictSettings(batch_size=32, tracking=False))
        >>> answer["predictions"][0]["label"]
    """

    def __init__(
        self, adaptive: Form, manifest: Manifest, name: str, version: str = "1", tracked: Form | None = None
    ) -> None:
        self.adaptive = adaptive
        self.tracked = tracked or adaptive
        self.manifest = manifest
        self.name = name
        self.version = version
        self._min_rows = rows_with_own_statistics(manifest)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        providers: Sequence[str] | None = None,
        threads: int = 0,
        threads_beside: int = 0,
        name: str | None = None,
        version: str = "1",
        fold: bool = True,
        fall_back: bool = False,
    ) -> Predictor:
        """Open a file and see that it answers and keeps groups apart.

        Args:
            path: the .onnx file.
            providers: execution providers in order of preference; None means the CPU.
            threads: threads inside one operator; 0 means one a core.
            threads_beside: the same in one of several runs at a time; 0 means no difference.
            name: the model's name; None means the file's stem.
            version: the version's name.
            fold: whether requests with tracked statistics get a graph of their own, with the norms folded away.
            fall_back: whether a provider that does not start may leave the model to the next one.

        Raises:
            ModelFileError: a file that cannot be opened, or that fails its self-check.
            ConfigurationError: a provider that this ONNX Runtime does not have, or that does not start.
        """
        how = Opening(providers, threads, threads_beside)
        name = name or Path(path).stem
        adaptive, tracked, manifest = open_forms(path, name, how, fold=fold, fall_back=fall_back)
        return cls(adaptive, manifest, name, version, tracked)

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Run zeros of these numbers of rows, so that no request waits for memory or for kernels to be chosen."""
        for n in sizes:
            rows = np.zeros((n, *self.manifest.shape), np.float32)
            for form in {self.adaptive, self.tracked}:
                form.run(rows, np.zeros(n, np.int64), np.ones(n, np.float32))
        if self.manifest.mode == "adaptive" and sizes:
            n = max(*sizes, 2)
            rows = np.zeros((n, *self.manifest.shape), np.float32)
            self.adaptive.run(rows, np.zeros(n, np.int64), np.zeros(n, np.float32))

    def fit_runs(self, limit: int | None) -> None:
        """Measure the runs of each form that holds its graph twice.

        Args:
            limit: the most rows that may fill a run beside others; None: how many do is not measured.
        """
        for form in {self.adaptive, self.tracked}:
            if form.beside is not None:
                form.few = 0  # until it is measured, a run alone takes all cores
                form.few = rows_on_one_core(form, self.manifest)
                if form.merges and limit is not None:
                    form.fill = fitting_rows(form, self.manifest, limit)

    def predict(self, rows: npt.ArrayLike, settings: PredictSettings | None = None) -> Answer:
        """Predict rows in the calling thread.

        Args:
            rows: numbers (N, C, H, W), preprocessed.
            settings: how to normalise them and what to return; None means the model's defaults.

        Returns:
            The answer, as it would come over HTTP.

        Raises:
            InputError: rows of the wrong shape, type or content.
            ConfigurationError: settings that this file does not serve.
            StatisticsError: impossible statistics groups.
            UnknownModelError: settings that name another model.
        """
        start = time.perf_counter()
        job = self.prepare(check_rows(rows, self.manifest), settings or PredictSettings())
        ready = time.perf_counter()
        logits = self.run(job)
        tracked = self.run(self.as_tracked(job)) if job.settings.compare else None
        done = time.perf_counter()
        timing = Timing(queue=0.0, run=1e3 * (done - ready), total=1e3 * (done - start))
        return self.answer(job, logits, timing, tracked)

    def statistics(self, settings: PredictSettings) -> Statistics:
        """Return the statistics that the settings ask for, or say why this model cannot give them."""
        if settings.model not in (None, self.name):
            raise UnknownModelError(f"no model {settings.model[:80]!r} here; the model is {self.name!r}")
        if settings.tracking is not None and settings.blend is not None:
            raise ConfigurationError("expected tracking or blend; got both: leave one of them out")
        modes = self.manifest.modes
        if settings.blend is not None:
            chosen = Statistics("blend", settings.blend.tracked_weight, settings.blend.prior)
        elif settings.tracking is not None:
            chosen = TRACKED if settings.tracking else BATCH
        else:
            file_mode = self.manifest.mode
            chosen = Statistics(self.manifest.default_mode if file_mode == "adaptive" else file_mode)
        if chosen.mode not in modes:
            raise StatisticsError(
                f"this file serves {' or '.join(modes)} statistics only; got a request for {chosen.mode}; "
                "export it with mode adaptive to choose per request"
            )
        return chosen

    def prepare(
        self, rows: npt.NDArray[np.float32], settings: PredictSettings, statistics: Statistics | None = None
    ) -> Job:
        """Cut checked rows, float32 (N, C, H, W), into statistics groups; `statistics` as the settings ask."""
        statistics = statistics or self.statistics(settings)
        groups = group_rows(len(rows), statistics, settings.batch_size, settings.remainder, self._min_rows)
        return Job(rows[: len(groups.ids)], groups, statistics, settings)

    def form_of(self, statistics: Statistics) -> Form:
        """Return the form that a request with these statistics runs on, whatever else is asked."""
        return self.tracked if statistics.mode == "tracked" else self.adaptive

    def as_tracked(self, job: Job) -> Job:
        """Return the job with tracked statistics in the place of its own.

        Raises:
            StatisticsError: the file serves no tracked statistics.
        """
        statistics = self.statistics(job.settings.model_copy(update={"tracking": True, "blend": None}))
        groups = job.groups._replace(
            tracked_weight=np.ones_like(job.groups.tracked_weight), weights=[1.0] * len(job.groups.weights)
        )
        return job._replace(statistics=statistics, groups=groups)

    def pieces(self, job: Job, limit: int, fill: int | None = None) -> list[Piece]:
        """Cut a job into what must not be parted; `limit` and `fill` are those of `isolation.cut`."""
        return cut(job.rows, job.groups, limit, fill=fill, apart=not self.form_of(job.statistics).merges)

    def run(self, job: Job) -> npt.NDArray[np.float32]:
        """Run a job in the calling thread; float32 (K, classes)."""
        form = self.form_of(job.statistics)
        parts = [form.run(*merge([piece])) for piece in self.pieces(job, len(job.rows))]
        return np.concatenate(parts)

    def answer(self, job: Job, logits: Logits, timing: Timing, tracked: Logits | None = None) -> Answer:
        """Put logits, float32 (K, classes), into words, beside those of tracked statistics where they are given."""
        check_finite(logits)
        predictions, probabilities = _predictions(logits, self.manifest.classes, job.settings)
        answer = Answer(
            predictions=predictions,
            model=self.name,
            model_version=self.version,
            statistics=statistics_used(job),
            warnings=job.groups.warnings,
            timing_ms=timing,
        )
        if tracked is not None:
            check_finite(tracked)
            answer["comparison"] = _compare(predictions, probabilities, softmax(tracked), self.manifest.classes)
        return answer


def statistics_used(job: Job) -> StatisticsUsed:
    """Return how a job's rows are normalised, in the words of an answer."""
    return StatisticsUsed(
        mode=job.statistics.mode,
        tracked_weight=job.groups.weights,
        groups=job.groups.sizes,
        remainder=job.settings.remainder,
        dropped=job.groups.dropped,
    )


def check_finite(logits: Logits) -> None:
    """Refuse rows for which the model gives no numbers.

    Raises:
        InputError: NaN or inf in a row.
    """
    finite = np.isfinite(logits)
    if not finite.all():
        first = int(finite.all(axis=1).argmin())
        raise InputError(
            f"expected rows that give finite logits; this model gives NaN or inf for row {first}; "
            "preprocess the rows as its manifest says"
        )


def _predictions(
    logits: Logits, classes: list[str], settings: PredictSettings
) -> tuple[list[Prediction], Probabilities]:
    """Return the wanted parts of each row's prediction; of equal logits the first class counts as larger."""
    probabilities = softmax(logits)
    wanted, top_k = settings.returns, settings.top_k
    first = logits.argmax(axis=1).tolist()
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k].tolist() if top_k else []
    raw = logits.tolist() if "logits" in wanted else []
    predictions: list[Prediction] = []
    for row, numbers in enumerate(probabilities.tolist()):
        prediction: Prediction = {}
        if "label" in wanted:
            k = first[row]
            prediction = {"index": k, "label": classes[k], "probability": numbers[k]}
        if "probabilities" in wanted:
            prediction["probabilities"] = numbers
        if "logits" in wanted:
            prediction["logits"] = raw[row]
        if top_k:
            prediction["top_k"] = [{"index": k, "label": classes[k], "probability": numbers[k]} for k in order[row]]
        predictions.append(prediction)
    return predictions, probabilities


def _compare(
    predictions: list[Prediction], own: Probabilities, tracked: Probabilities, classes: list[str]
) -> Comparison:
    """Put the tracked prediction beside each of `predictions`, in place, and return how they differ."""
    best = tracked.argmax(axis=1)
    for row, (prediction, k) in enumerate(zip(predictions, best.tolist(), strict=True)):
        prediction["tracked"] = TopClass(index=k, label=classes[k], probability=float(tracked[row, k]))
    differing = np.flatnonzero(best != own.argmax(axis=1))
    return Comparison(
        disagreement=len(differing) / len(best),
        rows=differing.tolist(),
        max_difference=float(np.abs(own - tracked).max()),
    )
