"""Normalization layers with explicit statistics. One paper per file; `base` holds what they share."""

from augserve.norms.aug_norm import AugNorm, AugNorm1d, AugNorm2d, AugNorm3d
from augserve.norms.aug_variants import (
    AugGroupNorm,
    AugInstanceNorm,
    AugInstanceNorm1d,
    AugInstanceNorm2d,
    AugInstanceNorm3d,
    AugLayerNorm,
    OwnRows,
)
from augserve.norms.base import StatisticsNorm
from augserve.norms.baselines import ONI, normalize_weights, ocnn_penalty, ocnn_penalty_of, oni
from augserve.norms.batch_norm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from augserve.norms.calibrate import CalibrationReport, calibrate
from augserve.norms.conv_norm import ConvNorm2d
from augserve.norms.convert import ConversionReport, convert_norm
from augserve.norms.graph_norm import AugGraphNorm, GraphNorm
from augserve.norms.median import MedianResult, generalized_median
from augserve.norms.modes import norm_layers, set_statistics, synchronize_statistics, use_statistics
from augserve.norms.registry import list_norms, norm_factory, normalize_model
from augserve.norms.robust_norm import RobustNorm, RobustNorm1d, RobustNorm2d, RobustNorm3d

__all__ = [
    "ONI",
    "AugGraphNorm",
    "AugGroupNorm",
    "AugInstanceNorm",
    "AugInstanceNorm1d",
    "AugInstanceNorm2d",
    "AugInstanceNorm3d",
    "AugLayerNorm",
    "AugNorm",
    "AugNorm1d",
    "AugNorm2d",
    "AugNorm3d",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "CalibrationReport",
    "ConvNorm2d",
    "ConversionReport",
    "GraphNorm",
    "MedianResult",
    "OwnRows",
    "RobustNorm",
    "RobustNorm1d",
    "RobustNorm2d",
    "RobustNorm3d",
    "StatisticsNorm",
    "calibrate",
    "convert_norm",
    "generalized_median",
    "list_norms",
    "norm_factory",
    "norm_layers",
    "normalize_model",
    "normalize_weights",
    "ocnn_penalty",
    "ocnn_penalty_of",
    "oni",
    "set_statistics",
    "synchronize_statistics",
    "use_statistics",
]
