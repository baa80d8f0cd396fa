"""How both clients connect: balancing, retries, and gRPC's statuses as typed errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypedDict, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from dragoman._endpoints import is_this_machine, listed_endpoints, target_of
from dragoman.credentials import Credentials
from dragoman.errors import (
    Cancelled,
    DeadlineExceeded,
    DragomanError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServerError,
    Unauthenticated,
    Unavailable,
)

__all__ = ["CallArguments", "Connection", "channel_options", "metadata_of", "typed_errors"]

_Metadata = tuple[tuple[str, str], ...]

_DETAILS_KEY = "grpc-status-details-bin"

# Translating twice does no harm: calls that a server lost or did not take are tried again, streams until
# their first message. CANCELLED comes from a server only where gRPC drops calls of a flood before anybody
# sees them; what a caller cancels is not tried again. RESOURCE_EXHAUSTED comes with the server's own delay
# (gRFC A6: pushback), which takes the place of the back-off. The pauses together outlast a reconnection.
# Retries stop while too many calls fail: 500 may, as many as a lost server breaks off at once, and then one
# in ten.
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
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1},
}
_HEALTH = {"healthCheckConfig": {"serviceName": ""}}
"""Asks every server of a channel whether it is SERVING, all the time, and sends calls to those alone. Not
where the server wants a token, which gRPC would not send with this question."""
# What a larger request takes is not kept to be sent again: no server takes it, unless it is told to.
_RETRY_BUFFER_BYTES = 4 * 1024 * 1024 + 65536
_KEEPALIVE_MS = 20_000
_KEEPALIVE_TIMEOUT_MS = 5_000


class CallArguments(TypedDict):
    """What every call of a stub is given."""

    timeout: float
    metadata: _Metadata


def channel_options(
    endpoints: Sequence[str], credentials: Credentials, *, watches_health: bool = True
) -> list[tuple[str, str | int]]:
    """The options of a channel to `endpoints`; calls go to each of them in turn.

    A proxy that the environment names is not asked for this machine itself, which it cannot reach.
    """
    watches_health = watches_health and not credentials.token
    config = _SERVICE_CONFIG | _HEALTH if watches_health else _SERVICE_CONFIG
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
        # The server bounds what it takes; what it answers may be several times as long.
        ("grpc.max_receive_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 500),
        # A server that is gone without a word is noticed while a call waits for it.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # Without this it is waited for 60 s more, whatever the two above say.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.enable_http_proxy", int(not is_this_machine(endpoints))),
    ]


def metadata_of(endpoints: Sequence[str], credentials: Credentials) -> _Metadata:
    """What goes with every call.

    Raises:
        ValueError: the token could be read on its way.
    """
    if not credentials.token:
        return ()
    if credentials.of_channel() is None and not is_this_machine(endpoints):
        raise ValueError(
            f"a token would go to {', '.join(endpoints)} for everybody to read; use TLS: DRAGOMAN_TLS=1, or "
            "DRAGOMAN_CA"
        )
    return (("authorization", f"Bearer {credentials.token}"),)


class Connection:
    """A synchronous client's channel; closes with the context it is used in.

    Args:
        endpoint: HOST:PORT, several of them, or any other target that gRPC resolves.
        credentials: By default what the environment says.
        watches_health: Whether a server gets calls only while its health is SERVING.

    Raises:
        ValueError: an endpoint is none, or a token would be sent in plaintext to another machine.
        OSError: a certificate cannot be read, or a name is not found.
    """

    def __init__(
        self,
        endpoint: str | Sequence[str],
        credentials: Credentials | None = None,
        *,
        watches_health: bool = True,
    ) -> None:
        credentials = credentials or Credentials.from_environment()
        endpoints = listed_endpoints(endpoint)
        self._metadata = metadata_of(endpoints, credentials)
        options = channel_options(endpoints, credentials, watches_health=watches_health)
        secret = credentials.of_channel()
        if secret is None:
            self._channel = grpc.insecure_channel(target_of(endpoints), options=options)
        else:
            self._channel = grpc.secure_channel(target_of(endpoints), secret, options=options)

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
        case grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(message)
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDenied(message)
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
