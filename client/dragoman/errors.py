"""Every error of the client, in one tree; each also inherits the matching builtin.

DragomanError
├── InvalidArgument (ValueError)       a field of the call is wrong; `field` names it
├── NotFound (LookupError)             no such model or language pair
├── ResourceExhausted (RuntimeError)   the server has no room; `retry_after` says when to try again
├── DeadlineExceeded (TimeoutError)    no answer within the call's timeout
├── Unavailable (ConnectionError)      the server cannot be reached, or stops
├── Unauthenticated (PermissionError)  the server asks for a token, and for another than was sent
├── PermissionDenied (PermissionError) the token does not stand for this
├── Cancelled (RuntimeError)           the call was cancelled
└── ServerError (RuntimeError)         anything else the server answered
"""

from __future__ import annotations

__all__ = [
    "Cancelled",
    "DeadlineExceeded",
    "DragomanError",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "ServerError",
    "Unauthenticated",
    "Unavailable",
]


class DragomanError(Exception):
    """Base of every error below."""


class InvalidArgument(DragomanError, ValueError):  # noqa: N818 - named after the gRPC status
    """A field of the call is wrong."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        """Such as "options.beam_size" or "texts[3]"; `None` where the server did not say."""


class NotFound(DragomanError, LookupError):  # noqa: N818
    """No served model has that name, or translates that language pair."""


class ResourceExhausted(DragomanError, RuntimeError):  # noqa: N818
    """The server has no room for the call."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds; `None` where the server did not say."""


class DeadlineExceeded(DragomanError, TimeoutError):  # noqa: N818
    """No answer came within the call's timeout."""


class Unavailable(DragomanError, ConnectionError):  # noqa: N818
    """The server cannot be reached, or is shutting down."""


class Unauthenticated(DragomanError, PermissionError):  # noqa: N818
    """The server asks for a token, or knows another than was sent."""


class PermissionDenied(DragomanError, PermissionError):  # noqa: N818
    """The token sent does not stand for what was asked."""


class Cancelled(DragomanError, RuntimeError):  # noqa: N818
    """The call was cancelled."""


class ServerError(DragomanError, RuntimeError):
    """The server failed, or refused the call for a reason that has no type of its own."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
        """The name of the gRPC status, such as "INTERNAL"."""
