"""Lets in who bears a token, before anything else looks at a call; everything is denied by default."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio

from dragoman_server.metrics import DENIED, CallRecord
from dragoman_server.service.callers import authenticated_as
from dragoman_server.service.guard import ObserveCall
from dragoman_server.service.tokens import TokenFile

__all__ = ["Authentication"]

_HEADER, _SCHEME = "authorization", "bearer"
_HEALTH = "/grpc.health.v1.Health/"

Denial = tuple[grpc.StatusCode, str]
_NO_TOKEN: Denial = (
    grpc.StatusCode.UNAUTHENTICATED,
    "a token is asked for: authorization: Bearer ...",
)
_UNKNOWN: Denial = (grpc.StatusCode.UNAUTHENTICATED, "the token is none of this server's")
_OTHER_SERVICE: Denial = (grpc.StatusCode.PERMISSION_DENIED, "the token does not stand for administration")


class Authentication(grpc.aio.ServerInterceptor):
    """Denies every method to callers without a token, those that do not exist included.

    Args:
        tokens: Who may call.
        observe: Told of every call that is denied, whose method is not looked at.
        others: Who may call another service, and is told that this is not it.
        open_health: Whether health checks need no token: probes and balancers often cannot have one.
    """

    def __init__(
        self,
        tokens: TokenFile,
        observe: ObserveCall,
        *,
        others: TokenFile | None = None,
        open_health: bool = False,
    ) -> None:
        self._tokens = tokens
        self._observe = observe
        self._others = others
        self._open_health = open_health

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler that gRPC is to call, or one that denies."""
        if not (self._open_health and handler_call_details.method.startswith(_HEALTH)):
            denial = self._denial(handler_call_details)
            if denial is not None:
                return self._denying(*denial)
        return await continuation(handler_call_details)

    def _denial(self, details: grpc.HandlerCallDetails) -> Denial | None:
        """Why a call is denied; `None`: it is not, and is its token's owner's from here on."""
        values = [value for key, value in details.invocation_metadata if key == _HEADER]
        scheme, _, token = str(values[0]).partition(" ") if len(values) == 1 else ("", "", "")
        if scheme.lower() != _SCHEME:
            return _NO_TOKEN
        name = self._tokens.name_of(token)
        if name is not None:
            authenticated_as(name)
            return None
        known_elsewhere = self._others is not None and self._others.name_of(token) is not None
        return _OTHER_SERVICE if known_elsewhere else _UNKNOWN

    def _denying(self, code: grpc.StatusCode, message: str) -> Any:
        async def deny(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
            self._observe(CallRecord(DENIED, code.name, 0.0, context.peer()))
            await context.abort(code, message)

        # Of the kind that waits for no message, whatever the method's own: nothing that is sent is read.
        return grpc.stream_stream_rpc_method_handler(deny)
