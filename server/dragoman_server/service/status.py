"""Errors to gRPC statuses: one table, rich details, and nothing of the inside in what leaves."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from dragoman_server.errors import (
    BundleError,
    BusyError,
    CancelledError,
    DeadlineError,
    DeviceError,
    InvalidRequestError,
    ModelNotFoundError,
    NotReadyError,
    ShuttingDownError,
    StalledError,
)

__all__ = ["abort", "code_of"]

_log = logging.getLogger(__name__)

# Whatever is not here is INTERNAL.
_CODES: dict[type[BaseException], grpc.StatusCode] = {
    BundleError: grpc.StatusCode.FAILED_PRECONDITION,
    DeviceError: grpc.StatusCode.FAILED_PRECONDITION,
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    CancelledError: grpc.StatusCode.CANCELLED,
    asyncio.CancelledError: grpc.StatusCode.CANCELLED,
    NotReadyError: grpc.StatusCode.UNAVAILABLE,
    ShuttingDownError: grpc.StatusCode.UNAVAILABLE,
    StalledError: grpc.StatusCode.UNAVAILABLE,
}
# Metadata has room for about 8 KB; a message is there once as text and once in the details.
_MAX_MESSAGE = 1024
_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"


def code_of(error: BaseException) -> grpc.StatusCode:
    """The status code that an error becomes."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


async def abort(error: Exception, context: grpc.aio.ServicerContext[Message, Message]) -> NoReturn:
    """End a call with the status of `error`.

    An error that is nobody's but ours leaves as an id alone; the log has the id and the cause.
    """
    code = code_of(error)
    message = _internal(error) if code is grpc.StatusCode.INTERNAL else str(error)[:_MAX_MESSAGE]
    status = status_pb2.Status(code=code.value[0], message=message, details=_details(error))
    metadata: list[tuple[str, str | bytes]] = [(_DETAILS_KEY, status.SerializeToString())]
    if isinstance(error, BusyError):
        metadata.append((_PUSHBACK_KEY, str(round(error.retry_after_seconds * 1000))))
    await context.abort(code, message, tuple(metadata))


def _internal(error: Exception) -> str:
    identifier = secrets.token_hex(4)
    _log.error("internal error %s", identifier, exc_info=error)
    return f"internal error {identifier}; the server's log has its cause under this id"


def _details(error: Exception) -> list[any_pb2.Any]:
    if isinstance(error, InvalidRequestError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.description[:_MAX_MESSAGE]
        )
        return [_packed(error_details_pb2.BadRequest(field_violations=[violation]))]
    if isinstance(error, BusyError):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        return [_packed(error_details_pb2.RetryInfo(retry_delay=delay))]
    return []


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
