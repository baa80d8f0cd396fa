"""Who calls."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import grpc.aio

__all__ = ["authenticated_as", "caller_of"]

_NAME: ContextVar[str | None] = ContextVar("caller", default=None)


def authenticated_as(name: str) -> None:
    """Note whose token the call in progress bears; gRPC runs a call and its interceptors in one context."""
    _NAME.set(name)


def caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The name of the token that the call in progress bears; without tokens, the connection's other end."""
    return _NAME.get() or context.peer()
