"""Normalization layers with explicit statistics. One paper per file; `base` holds what they share."""

from augserve.norms.aug_norm import AugNorm1d, AugNorm2d, AugNorm3d
from augserve.norms.base import StatisticsNorm
from augserve.norms.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from augserve.norms.convert import ConversionReport, convert_norm
from augserve.norms.median import MedianResult, generalized_median
from augserve.norms.modes import norm_layers, set_statistics, use_statistics
from augserve.norms.registry import list_norms, norm_factory
from augserve.norms.robust_norm import RobustNorm1d, RobustNorm2d, RobustNorm3d

__all__ = [
    "AugNorm1d",
    "AugNorm2d",
    "AugNorm3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConversionReport",
    "MedianResult",
    "RobustNorm1d",
    "RobustNorm2d",
    "RobustNorm3d",
    "StatisticsNorm",
    "convert_norm",
    "generalized_median",
    "list_norms",
    "norm_factory",
    "norm_layers",
    "set_statistics",
    "use_statistics",
]
