"""Who calls, which model answers, and the span that is told of it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import grpc.aio

if TYPE_CHECKING:
    from dragoman_server.service.tracing import CallSpan

__all__ = [
    "answered_by",
    "authenticated_as",
    "caller_of",
    "model_of_call",
    "span_of_call",
    "traced_by",
]

_NAME: ContextVar[str | None] = ContextVar("caller", default=None)
_MODEL: ContextVar[str] = ContextVar("model", default="")
_SPAN: ContextVar[CallSpan | None] = ContextVar("span", default=None)


def authenticated_as(name: str) -> None:
    """Note whose token the call in progress bears; gRPC runs a call and its interceptors in one context."""
    _NAME.set(name)


def caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The name of the token that the call in progress bears; without tokens, the connection's other end."""
    return _NAME.get() or context.peer()


def answered_by(model: str) -> None:
    """Note which of the served models the call in progress was given."""
    _MODEL.set(model)


def model_of_call() -> str:
    """The name of that model; empty before one was found."""
    return _MODEL.get()


def traced_by(span: CallSpan) -> None:
    """Note the span that is to be told of the call in progress."""
    _SPAN.set(span)


def span_of_call() -> CallSpan | None:
    """That span; `None` where the call is not traced."""
    return _SPAN.get()
