"""What balancers and clients ask before they send calls: `grpc.health.v1.Health`.

The servicer that gRPC ships tells its watchers one after the other, under a lock that changes need as well: a
single watcher that does not read would hold up the end of the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["LIVENESS", "Health"]

LIVENESS = "liveness"
"""The name by which to ask whether the server is of any use, or had better be started anew."""

_Context = grpc.aio.ServicerContext[Any, Any]
_Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """One state under several names, and one of each model; NOT_SERVING at first. Used from one event loop.

    A model's name is that of a service to ask for, too. The server is SERVING while it takes calls and all
    its models are; a model is while the server takes calls and its network is of use. `LIVENESS` is SERVING
    while the models are, whether or not the server takes calls: who loads or drains is not to be killed.

    Args:
        names: Of services; the empty one stands for the whole server.
    """

    def __init__(self, *names: str) -> None:
        self._names = frozenset(names)
        self._serving = False
        self._models: dict[str, bool] = {}
        self._changed = asyncio.Event()

    def say(self, serving: bool) -> None:
        """Answer SERVING or NOT_SERVING from now on; watchers are told in the loop's next round."""
        self._serving = serving
        self._tell()

    def say_of_models(self, models: Mapping[str, bool]) -> None:
        """From now on there are these models, SERVING or not, and no others."""
        if models != self._models:
            self._models = dict(models)
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802 - the generated base class names it
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """The state now; NOT_FOUND for other names."""
        status = self._status(request.service)
        if status == _Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _Response(status=status)

    async def List(  # noqa: N802
        self, request: health_pb2.HealthListRequest, context: _Context
    ) -> health_pb2.HealthListResponse:
        """The state now of every name."""
        names = (*self._names, LIVENESS, *self._models)
        statuses = {name: _Response(status=self._status(name)) for name in names}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> None:
        """The state now, and whenever it changes; SERVICE_UNKNOWN for other names."""
        told: int | None = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                await context.write(_Response(status=status))
                told = status
            await changed.wait()

    def _status(self, name: str) -> int:
        well = all(self._models.values())
        if name in self._names:
            serving = self._serving and well
        elif name == LIVENESS:
            serving = well
        elif name in self._models:
            serving = self._serving and self._models[name]
        else:
            return int(_Response.SERVICE_UNKNOWN)
        return int(_Response.SERVING if serving else _Response.NOT_SERVING)
