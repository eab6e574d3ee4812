"""The model zoo: networks by name, each with any norm."""

from augserve.models.registry import build_model, list_models

__all__ = ["build_model", "list_models"]
