"""Every error that augserve raises on purpose.

Each message says what was expected, what came, and what to do. The tree::

    AugserveError
    ├── ConfigurationError      a name or setting that does not exist or cannot be (also a ValueError)
    ├── StatisticsError         impossible normalization statistics (also a ValueError)
    ├── InputError              rows of the wrong shape, type or content (also a ValueError)
    ├── DataError               a data set that is missing or damaged
    ├── RunError                a training run's folder that is missing or half-written
    ├── TrainingError           training that cannot go on
    ├── ModelFileError          a file that is missing, not ONNX, not ours, or damaged
    ├── ExportError             a model that cannot be exported, or whose parity report failed
    └── ServiceError            the service or its client
        ├── MalformedRequestError     a body that cannot be parsed
        ├── MissingApiKeyError        no API key where the service asks for one
        ├── InvalidApiKeyError        an API key that is not one of the service's
        ├── MediaTypeError            a body of a type that is not served
        ├── PayloadTooLargeError      a body, a request or an image over its limit
        ├── UnknownModelError         no such model here
        ├── QueueFullError            more requests are waiting than allowed
        ├── NotReadyError             starting or draining
        ├── DeadlineError             the request waited longer than allowed
        └── RemoteError               the server at the other end refused or failed

Errors know nothing of HTTP or exit statuses: `service/http/errors.py` and `cli.py` each hold one table.
"""

from __future__ import annotations

from collections.abc import Iterable


class AugserveError(Exception):
    """The base of every error raised on purpose."""


class ConfigurationError(AugserveError, ValueError):
    """A name or a setting that does not exist or cannot be."""


class StatisticsError(AugserveError, ValueError):
    """Statistics that cannot be computed or were not kept."""


class InputError(AugserveError, ValueError):
    """Rows of the wrong shape, type or content."""


class DataError(AugserveError):
    """A data set that is missing or damaged."""


class RunError(AugserveError):
    """A training run's folder that is missing or half-written."""


class TrainingError(AugserveError):
    """Training that cannot go on."""


class ModelFileError(AugserveError):
    """A model file that is missing, not ONNX, not ours, or damaged."""


class ExportError(AugserveError):
    """A model that cannot be exported, or whose parity report failed."""


class ServiceError(AugserveError):
    """The base of the errors of the service and its client."""


class MalformedRequestError(ServiceError):
    """A request body that cannot be parsed."""


class MissingApiKeyError(ServiceError):
    """A request without an API key, where the service asks for one."""


class InvalidApiKeyError(ServiceError):
    """A request whose API key is not one of the service's."""


class MediaTypeError(ServiceError):
    """A request body of a type that is not served."""


class PayloadTooLargeError(ServiceError):
    """A body, a request or an image over its limit."""


class UnknownModelError(ServiceError):
    """No model of that name is served here."""


class QueueFullError(ServiceError):
    """More requests are waiting than the queue limit allows."""


class NotReadyError(ServiceError):
    """The service is starting or draining."""


class DeadlineError(ServiceError):
    """The request waited longer than its deadline."""


class RemoteError(ServiceError):
    """The server at the other end refused the request or could not be reached."""


def unknown_choice(what: str, came: object, choices: Iterable[str]) -> ConfigurationError:
    """Return the error for a name that is not among the valid ones, which it lists."""
    return ConfigurationError(f"unknown {what} {came!r}; choose one of: {', '.join(sorted(choices))}")
