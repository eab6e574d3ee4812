"""Random mixes of requests of every mode, and what a real scheduler answers to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from augserve.service import Predictor, PredictSettings
from augserve.service.model.predictor import Job
from augserve.service.queue.scheduler import Ran, RunReport
from tests.service.held import Held

MAX_ROWS = 9
POISONS = (np.nan, np.inf, -np.inf, 1e30, 0.0)


@dataclass
class Ask:
    """A request of a mix."""

    predictor: Predictor
    settings: PredictSettings
    rows: np.ndarray
    caller: str

    def job(self) -> Job:
        """The job, past the checks of its rows: NaN and inf come through."""
        return self.predictor.prepare(self.rows, self.settings)


@dataclass
class Mix:
    """Requests in the order in which they come, and the most rows of a run."""

    asks: list[Ask]
    limit: int


def random_mix(random: np.random.Generator, predictors: Sequence[Predictor]) -> Mix:
    """Two to seven requests of one or two models, which any limit can run."""
    models = [predictors[k] for k in random.integers(len(predictors), size=random.integers(1, 3))]
    limit = int(random.choice([MAX_ROWS, 16, 64]))
    asks = []
    for _ in range(random.integers(2, 8)):
        predictor = models[random.integers(len(models))]
        n = int(random.integers(1, MAX_ROWS + 1))
        rows = random.normal(size=(n, *predictor.manifest.shape)) * random.uniform(0.5, 2) + random.normal()
        caller = str(random.integers(3))
        asks.append(Ask(predictor, random_settings(random, n), rows.astype(np.float32), caller))
    return Mix(asks, limit)


def random_settings(random: np.random.Generator, n: int) -> PredictSettings:
    """Any way to normalise n rows that is possible: one-row groups too, as all files here have spatial values."""
    mode = random.choice(["default", "tracked", "batch", "weight", "prior"])
    said: dict[str, object] = {
        "default": {},
        "tracked": {"tracking": True},
        "batch": {"tracking": False},
        "weight": {"blend": {"tracked_weight": float(random.choice([0.0, 0.3, 0.9, 1.0]))}},
        "prior": {"blend": {"prior": float(random.choice([0, 4, 16]))}},
    }[mode]
    size = int(random.integers(1, n + 1)) if random.random() < 0.7 else None
    return PredictSettings(batch_size=size, remainder=random.choice(["own", "merge", "drop"]), **said)


def changed(random: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """Other rows of the same shape; some hold NaN, inf, or what overflows."""
    other = random.normal(size=rows.shape).astype(np.float32) * np.float32(10 ** random.uniform(-3, 3))
    if random.random() < 0.6:
        for _ in range(random.integers(1, 4)):
            row, poison = random.integers(len(rows)), POISONS[random.integers(len(POISONS))]
            if random.random() < 0.5:
                other[row] = poison
            else:
                other[row].flat[random.integers(other[row].size)] = poison
    return other


async def answered(mix: Mix) -> tuple[list[np.ndarray], list[RunReport]]:
    """Run a mix behind a busy worker: the logits of each request, and which runs there were."""
    held = Held(max_batch_size=mix.limit)
    jobs = [ask.job() for ask in mix.asks]

    def begin() -> list[asyncio.Task[Ran]]:
        return [
            held.ask(
                ask.predictor.form_of(job.statistics), *ask.predictor.pieces(job, mix.limit), caller=ask.caller
            )
            for ask, job in zip(mix.asks, jobs, strict=True)
        ]

    try:
        outcomes = await held.behind(begin)
    finally:
        held.scheduler.close()
    logits = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        logits.append(outcome.logits)
    return logits, [report._replace(seconds=0.0) for report in held.reports]
