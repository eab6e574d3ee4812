"""Training a network and keeping the run: `TrainConfig` says what, `train` does it."""

from augserve.training.config import SCHEDULES, TrainConfig
from augserve.training.loop import EpochMetrics, Progress, TrainResult, train
from augserve.training.losses import chi_square, chi_square_doro, cvar, cvar_doro
from augserve.training.run import Run, load_run

__all__ = [
    "SCHEDULES",
    "EpochMetrics",
    "Progress",
    "Run",
    "TrainConfig",
    "TrainResult",
    "chi_square",
    "chi_square_doro",
    "cvar",
    "cvar_doro",
    "load_run",
    "train",
]
