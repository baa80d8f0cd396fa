"""Stands around every handler: bad bytes and errors become statuses, and calls are counted.

By itself grpc.aio answers UNKNOWN with the exception's text to whatever a handler or the parser raises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from dragoman_server.errors import InvalidRequestError
from dragoman_server.logs import TRACE_ID
from dragoman_server.metrics import CallRecord
from dragoman_server.service.callers import caller_of, model_of_call, traced_by
from dragoman_server.service.status import abort, code_of

if TYPE_CHECKING:
    from dragoman_server.service.tracing import CallSpan, Tracing

__all__ = ["Guard", "ObserveCall"]

ObserveCall = Callable[[CallRecord], None]

_TRACEPARENT = "traceparent"

_Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


class _Malformed:
    """Stands for a request whose bytes are no message."""


class Guard(grpc.aio.ServerInterceptor):
    """Wraps handlers: coroutines (streams are sent by `context.write`), generators for streams of requests.

    Args:
        observe: Told of every call that has ended.
        tracing: Of the calls of `traced`; `None`: of none.
        traced: The service whose calls are traced, in full.
    """

    def __init__(self, observe: ObserveCall, tracing: Tracing | None = None, traced: str = "") -> None:
        self._observe = observe
        self._tracing = tracing
        self._traced = f"/{traced}/"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler that gRPC is to call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler.request_streaming:
            behaviour, wrap = _writing(handler.stream_stream), grpc.stream_stream_rpc_method_handler
        elif handler.response_streaming:
            behaviour, wrap = handler.unary_stream, grpc.unary_stream_rpc_method_handler
        else:
            behaviour, wrap = handler.unary_unary, grpc.unary_unary_rpc_method_handler
        return wrap(
            self._guarded(handler_call_details.method, behaviour),
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _guarded(self, method: str, behaviour: _Handler) -> _Handler:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            started = time.monotonic()
            code = grpc.StatusCode.OK
            span = self._begin_span(method, context, started)
            try:
                _require_sound(request)
                return await behaviour(request, context)
            except grpc.aio.AbortError:
                code = _aborted_with(context)
                raise
            except grpc.aio.InternalError:
                # A message could not be sent: the caller is gone, and gRPC will cancel this call any moment.
                code = _gone(context)
                raise asyncio.CancelledError from None
            except Exception as error:
                code = code_of(error)
                await _abort(error, context)
            except (asyncio.CancelledError, GeneratorExit):
                code = _gone(context)
                raise
            finally:
                ended = time.monotonic()
                self._observe(
                    CallRecord(method, code.name, ended - started, caller_of(context), model_of_call())
                )
                if span is not None:
                    span.end(code, ended)

        return guarded

    def _begin_span(
        self, method: str, context: grpc.aio.ServicerContext[Any, Any], started: float
    ) -> CallSpan | None:
        """The call's span, known to the handler and the log; `None` where none will be sent."""
        if self._tracing is None or not method.startswith(self._traced):
            return None
        metadata = context.invocation_metadata() or ()
        # gRPC hands on one of several.
        traceparent = next((str(value) for key, value in metadata if key == _TRACEPARENT), None)
        span = self._tracing.begin(method, traceparent, started)
        TRACE_ID.set(span.trace_id)
        if not span.is_recording:
            return None
        traced_by(span)
        return span


async def _abort(error: Exception, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
    try:
        await abort(error, context)
    except grpc.aio.InternalError:
        # The caller gave up while the error was on its way: gRPC will cancel this call any moment.
        raise asyncio.CancelledError from None


def _require_sound(request: Any) -> None:
    if isinstance(request, _Malformed):
        raise InvalidRequestError("request", "its bytes are no message of this method, in UTF-8")


def _writing(replies: Callable[[Any, Any], AsyncIterator[Any]]) -> _Handler:
    """A coroutine that sends what a generator answers to a stream of requests."""

    async def sound(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            _require_sound(request)
            yield request

    async def write_all(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async for reply in replies(sound(requests), context):
            await context.write(reply)

    return write_all


def _tolerant(deserialise: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    # A deserialiser has no context to abort with, so it hands on a mark for the handler.
    def deserialise_or_mark(data: bytes) -> Any:
        try:
            return deserialise(data)
        except Exception:
            return _Malformed()

    return deserialise_or_mark


def _aborted_with(context: grpc.aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
    code = context.code()
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def _gone(context: grpc.aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
    """Why a call was cancelled: gRPC does so at the deadline too."""
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0.0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
