"""The three methods of `dragoman.v1.AdminService`, on an address of their own."""

from __future__ import annotations

from typing import Any

import grpc.aio

from dragoman.v1 import admin_pb2 as pb
from dragoman.v1 import admin_pb2_grpc
from dragoman_server.repository import ModelRepository
from dragoman_server.service.convert import model_summary
from dragoman_server.service.guard import Guard, ObserveCall
from dragoman_server.service.listening import Listener

__all__ = ["AdminServer", "AdminService"]

_MAX_BYTES = 65536
_Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Hands orders on to the repository; `Guard` turns what it raises into statuses."""

    def __init__(self, repository: ModelRepository) -> None:
        self._repository = repository

    async def LoadModel(  # noqa: N802 - the generated base class names it
        self, request: pb.LoadModelRequest, context: _Context
    ) -> pb.LoadModelResponse:
        """Serve the newest sound version of a model."""
        return pb.LoadModelResponse(model=model_summary(await self._repository.load(request.name)))

    async def UnloadModel(  # noqa: N802
        self, request: pb.UnloadModelRequest, context: _Context
    ) -> pb.UnloadModelResponse:
        """Serve a model no longer."""
        return pb.UnloadModelResponse(model=model_summary(await self._repository.unload(request.name)))

    async def Rollout(  # noqa: N802
        self, request: pb.RolloutRequest, context: _Context
    ) -> pb.RolloutResponse:
        """Serve one version of a model in place of another."""
        description = await self._repository.roll_out(request.name, request.version)
        return pb.RolloutResponse(model=model_summary(description))


class AdminServer:
    """Takes orders for one repository; used from one event loop.

    Args:
        listener: Where to listen, and whom to let in.
        observe: Told of every call that has ended.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, listener: Listener, observe: ObserveCall) -> None:
        self._server, self.address = listener.listen([Guard(observe)], _MAX_BYTES)
        """HOST:PORT as it is, the port chosen."""

    async def start(self, repository: ModelRepository) -> None:
        """Answer calls."""
        admin_pb2_grpc.add_AdminServiceServicer_to_server(  # type: ignore[no-untyped-call]
            AdminService(repository), self._server
        )
        await self._server.start()

    async def stop(self) -> None:
        """Close at once; operations that have begun go on."""
        await self._server.stop(grace=None)
