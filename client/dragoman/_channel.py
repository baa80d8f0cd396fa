"""How both clients connect: balancing, retries, and gRPC's statuses as typed errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from dragoman.errors import (
    Cancelled,
    DeadlineExceeded,
    DragomanError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServerError,
    Unavailable,
)

__all__ = ["Connection", "channel_options", "typed_errors"]

_DETAILS_KEY = "grpc-status-details-bin"
_LOOPBACK = ("127.", "localhost", "[::1]", "unix:")

# RESOURCE_EXHAUSTED comes with the server's own delay (gRFC A6: pushback), which takes the place of the
# back-off; retries stop while too many calls fail.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "dragoman.v1.TranslationService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}


def channel_options(endpoint: str) -> list[tuple[str, str | int]]:
    """The options of a channel to `endpoint`.

    A proxy that the environment names is not asked for this machine itself, which it cannot reach.
    """
    return [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        # The server bounds what it takes; what it answers may be several times as long.
        ("grpc.max_receive_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.enable_http_proxy", int(not endpoint.startswith(_LOOPBACK))),
    ]


class Connection:
    """A synchronous client's channel; closes with the context it is used in.

    Args:
        endpoint: HOST:PORT, or any other target that gRPC resolves.
    """

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.insecure_channel(endpoint, options=channel_options(endpoint))

    def close(self) -> None:
        """Close the connections; calls in progress are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Raise gRPC's errors as the client's.

    Raises:
        DragomanError: in place of every `grpc.RpcError`.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise _typed(error) from error


def _typed(error: grpc.RpcError) -> DragomanError:
    code: grpc.StatusCode = error.code()
    message = error.details() or code.name
    metadata = dict(cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ()))
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidArgument(message, _field(metadata.get(_DETAILS_KEY, b"")))
        case grpc.StatusCode.NOT_FOUND:
            return NotFound(message)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ResourceExhausted(message, _retry_after(metadata.get(_DETAILS_KEY, b"")))
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(message)
        case grpc.StatusCode.UNAVAILABLE:
            return Unavailable(message)
        case grpc.StatusCode.CANCELLED:
            return Cancelled(message)
    return ServerError(message, code.name)


def _field(details: bytes) -> str | None:
    found = error_details_pb2.BadRequest()
    if not _unpack(details, found) or not found.field_violations:
        return None
    return str(found.field_violations[0].field)


def _retry_after(details: bytes) -> float | None:
    found = error_details_pb2.RetryInfo()
    if not _unpack(details, found):
        return None
    return float(found.retry_delay.ToTimedelta().total_seconds())


def _unpack(details: bytes, into: error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> bool:
    """Find the detail of that type in a serialised `google.rpc.Status`."""
    try:
        status = status_pb2.Status.FromString(details)
        return any(detail.Unpack(into) for detail in status.details)
    except DecodeError:
        return False
