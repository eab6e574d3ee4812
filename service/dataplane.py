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
import onnxruntime as ort

from augserve.errors import ConfigurationError, InputError, ModelFileError, StatisticsError, UnknownModelError
from augserve.manifest import Manifest
from augserve.runtime import (
    check_rows,
    open_session,
    read_manifest,
    rows_with_own_statistics,
    run_rows,
    softmax,
)
from augserve.service.isolation import Groups, group_rows
from augserve.service.schemas import Answer, Prediction, PredictSettings, Timing, TopClass
from augserve.statistics import Statistics


class Job(NamedTuple):
    """A request that passed every check: kept rows float32 (K, C, H, W), their groups, and what is wanted."""

    rows: npt.NDArray[np.float32]
    groups: Groups
    statistics: Statistics
    settings: PredictSettings


class Predictor:
    """One open model.

    Args:
        session: from `augserve.runtime.open_session`.
        manifest: what the session's file says about itself.
        name: the model's name in requests and answers.

    Example:
        >>> predictor = Predictor.open("model.onnx")
        >>> answer = predictor.predict(rows, PredictSettings(batch_size=32, tracking=False))
        >>> answer["predictions"][0]["label"]
    """

    version = "1"

    def __init__(self, session: ort.InferenceSession, manifest: Manifest, name: str) -> None:
        self.session = session
        self.manifest = manifest
        self.name = name

    @classmethod
    def open(cls, path: str | Path, *, providers: Sequence[str] | None = None, threads: int = 0) -> Predictor:
        """Open a file and see that it answers; its stem becomes the model's name.

        Raises:
            ModelFileError: a file that cannot be opened, or that fails its self-check.
            ConfigurationError: a provider that this ONNX Runtime does not have.
        """
        session = open_session(path, providers=providers, threads=threads)
        predictor = cls(session, read_manifest(session, path), Path(path).stem)
        try:
            predictor.self_check()
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from None
        return predictor

    def self_check(self) -> None:
        """Run rows of zeros (one; as many as a group needs where the file has no tracked statistics).

        Raises:
            ModelFileError: the model fails, or does not answer with one finite logit a class.
        """
        n = 1 if "tracked" in self.manifest.modes else rows_with_own_statistics(self.manifest)
        zeros = np.zeros((n, *self.manifest.shape), np.float32)
        try:
            logits = run_rows(self.session, zeros)
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ModelFileError(f"fails its self-check on a row of zeros ({reason})") from None
        classes = len(self.manifest.classes)
        if logits.shape != (n, classes) or not np.isfinite(logits).all():
            came = f"logits of shape {logits.shape}" if logits.shape != (n, classes) else "NaN or inf"
            raise ModelFileError(
                f"fails its self-check on zeros: expected {classes} finite logits a row; got {came}; "
                "export the file again"
            )

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
        done = time.perf_counter()
        timing = Timing(queue=0.0, run=1e3 * (done - ready), total=1e3 * (done - start))
        return self.answer(job, logits, timing)

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
            chosen = Statistics("tracked" if settings.tracking else "batch")
        else:
            file_mode = self.manifest.mode
            chosen = Statistics(self.manifest.default_mode if file_mode == "adaptive" else file_mode)
        if chosen.mode not in modes:
            raise StatisticsError(
                f"this file serves {' or '.join(modes)} statistics only; got a request for {chosen.mode}; "
                "export it with mode adaptive to choose per request"
            )
        return chosen

    def prepare(self, rows: npt.NDArray[np.float32], settings: PredictSettings) -> Job:
        """Cut checked rows, float32 (N, C, H, W), into statistics groups."""
        statistics = self.statistics(settings)
        min_rows = rows_with_own_statistics(self.manifest)
        groups = group_rows(len(rows), statistics, settings.batch_size, settings.remainder, min_rows)
        return Job(rows[: len(groups.ids)], groups, statistics, settings)

    def run(self, job: Job) -> npt.NDArray[np.float32]:
        """Run the model, float32 (K, classes); a batch file takes no groups, so each group is a run."""
        if self.manifest.mode == "batch":
            cuts = np.cumsum(job.groups.sizes)[:-1]
            return np.concatenate([run_rows(self.session, part) for part in np.split(job.rows, cuts)])
        return run_rows(self.session, job.rows, job.groups.ids, job.groups.tracked_weight)

    def answer(self, job: Job, logits: npt.NDArray[np.float32], timing: Timing) -> Answer:
        """Put logits, float32 (K, classes), into words."""
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            first = int(finite.argmin())
            raise InputError(
                f"expected rows that give finite logits; this model gives NaN or inf for row {first}; "
                "preprocess the rows as its manifest says"
            )
        return Answer(
            predictions=_predictions(logits, self.manifest.classes, job.settings),
            model=self.name,
            model_version=self.version,
            statistics={
                "mode": job.statistics.mode,
                "tracked_weight": job.groups.weights,
                "groups": job.groups.sizes,
                "remainder": job.settings.remainder,
                "dropped": job.groups.dropped,
            },
            warnings=job.groups.warnings,
            timing_ms=timing,
        )


def _predictions(
    logits: npt.NDArray[np.float32], classes: list[str], settings: PredictSettings
) -> list[Prediction]:
    """Return the wanted parts of each row's prediction; of equal logits the first class counts as larger."""
    probabilities = softmax(logits)
    order = np.argsort(-logits, axis=1, kind="stable")[:, : settings.top_k or 1]
    wanted = settings.returns
    predictions = []
    for row in range(len(logits)):
        best = [
            TopClass(index=int(k), label=classes[k], probability=float(probabilities[row, k])) for k in order[row]
        ]
        prediction = Prediction()
        if "label" in wanted:
            prediction["index"] = best[0]["index"]
            prediction["label"] = best[0]["label"]
            prediction["probability"] = best[0]["probability"]
        if "probabilities" in wanted:
            prediction["probabilities"] = probabilities[row].tolist()
        if "logits" in wanted:
            prediction["logits"] = logits[row].tolist()
        if settings.top_k:
            prediction["top_k"] = best
        predictions.append(prediction)
    return predictions
