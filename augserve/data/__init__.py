"""Image sets as plain arrays: one type, one loader, official files only, nothing ever downloaded."""

from __future__ import annotations

from augserve.data.image_set import ImageSet
from augserve.data.registry import list_datasets, load_dataset

__all__ = ["ImageSet", "list_datasets", "load_dataset"]
