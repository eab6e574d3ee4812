"""A served model to ask: the fixtures of the service's tests."""

from tests.service.conftest import model, server

__all__ = ["model", "server"]
