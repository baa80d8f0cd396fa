"""Every error a user of the server can meet, in one tree; `service/status.py` maps it to gRPC status codes.

- DragomanServerError
    - BundleError (ValueError): a bundle that will not be loaded
    - DeviceError (OSError): the device asked for cannot be used
    - InvalidRequestError (ValueError): a request's field is wrong; names the field
    - ModelNotFoundError (LookupError): no such model or language pair
    - BusyError (RuntimeError): no room now; try later
        - QueueFullError: too many segments wait
        - TooManyCallsError: too many calls are in progress
        - DeadlineUnreachableError: what waits already takes longer than the request's deadline allows
    - DeadlineError (TimeoutError): the request's deadline passed
    - CancelledError (RuntimeError): the caller cancelled the request
        - SlowReaderError: the caller does not read its stream
    - NotReadyError (RuntimeError): the server is loading its models
    - ShuttingDownError (RuntimeError): the server drains and takes no more
    - EngineError (RuntimeError): the runtime failed; nothing the caller did
    - StalledError (RuntimeError): the runtime does not come back; another server may do better
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "BusyError",
    "CancelledError",
    "DeadlineError",
    "DeadlineUnreachableError",
    "DeviceError",
    "DragomanServerError",
    "EngineError",
    "InvalidRequestError",
    "ModelNotFoundError",
    "NotReadyError",
    "QueueFullError",
    "ShuttingDownError",
    "SlowReaderError",
    "StalledError",
    "TooManyCallsError",
]


class DragomanServerError(Exception):
    """Base of every error below."""


class BundleError(DragomanServerError, ValueError):
    """A bundle is incomplete, altered, of an unknown schema, or does not fit; the message says why."""


class DeviceError(DragomanServerError, OSError):
    """The device asked for cannot be used; the message says what is missing."""


class InvalidRequestError(DragomanServerError, ValueError):
    """A field of a request is wrong."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class ModelNotFoundError(DragomanServerError, LookupError):
    """No served model has that name, or translates that language pair."""


class BusyError(DragomanServerError, RuntimeError):
    """There is no room for the request now."""

    cause = "busy"
    """In one word, for metrics."""

    def __init__(self, reason: str, retry_after_seconds: float) -> None:
        super().__init__(f"{reason}; retry in {retry_after_seconds:.1f} s")
        self.retry_after_seconds = retry_after_seconds


class QueueFullError(BusyError):
    """The waiting queue is full."""

    cause = "queue_full"

    def __init__(self, waiting: int, retry_after_seconds: float) -> None:
        super().__init__(f"{waiting} sentences wait already", retry_after_seconds)


class TooManyCallsError(BusyError):
    """As many calls are in progress as the server takes."""

    def __init__(self, calls: int, retry_after_seconds: float) -> None:
        super().__init__(f"{calls} calls are in progress already", retry_after_seconds)


class DeadlineUnreachableError(BusyError):
    """The request would not be done by its deadline."""

    cause = "deadline"

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__("with what waits already it would not be done by its deadline", retry_after_seconds)


class DeadlineError(DragomanServerError, TimeoutError):
    """The request's deadline passed before its translation was complete."""


class CancelledError(DragomanServerError, RuntimeError):
    """The caller cancelled the request."""


class SlowReaderError(CancelledError):
    """The caller did not read its stream for too long, which is as good as cancelling it."""


class NotReadyError(DragomanServerError, RuntimeError):
    """The server is loading its models: nothing is taken yet."""


class ShuttingDownError(DragomanServerError, RuntimeError):
    """The server is draining: what it accepted is finished, nothing new is taken."""


class EngineError(DragomanServerError, RuntimeError):
    """The runtime failed while executing the network."""


class StalledError(DragomanServerError, RuntimeError):
    """The network has been executing for far longer than it takes, or its thread has died."""
