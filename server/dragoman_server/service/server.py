"""The gRPC server: translation, health, reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dragoman.v1 import translation_pb2, translation_pb2_grpc
from dragoman_server.config import CallLimits
from dragoman_server.drain import CallCounter
from dragoman_server.models import ModelTable
from dragoman_server.service.guard import Guard, ObserveCall
from dragoman_server.service.health import Health
from dragoman_server.service.listening import Listener
from dragoman_server.service.translation import TranslationService

if TYPE_CHECKING:
    from dragoman_server.service.tracing import Tracing

__all__ = ["SERVICE_NAME", "GrpcServer"]

SERVICE_NAME = translation_pb2.DESCRIPTOR.services_by_name["TranslationService"].full_name
"""What health checks may ask for, besides the empty name and those of models."""

_MESSAGE_OVERHEAD = 65536
_PROBE_BYTES = 4096
_REFUSAL_SECONDS = 0.25
_QUIET_SECONDS = 2.0


class GrpcServer:
    """Serves a table of models; used from one event loop.

    Args:
        listener: Where to listen, and whom to let in.
        limits: Bounds on one call.
        observe: Told of every translation call that has ended.
        log_texts: Whether texts go to the log.
        health_listener: Where health checks are answered as well, and nothing else.
        tracing: Begins the spans of translation calls.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(
        self,
        listener: Listener,
        limits: CallLimits,
        observe: ObserveCall,
        *,
        log_texts: bool = False,
        health_listener: Listener | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._limits = limits
        self._log_texts = log_texts
        self._calls = CallCounter(limits.max_concurrent_calls, ready=False)
        self._health = Health("", SERVICE_NAME)
        # Room for the largest call and for one that is a little larger, which is told its wrong field.
        max_bytes = limits.max_texts * limits.max_text_bytes + _MESSAGE_OVERHEAD
        guard = Guard(observe, tracing, traced=SERVICE_NAME)
        self._server, self.address = listener.listen([guard], max_bytes)
        """HOST:PORT as it is, the port chosen."""
        self._probed: grpc.aio.Server | None = None
        """The server of health alone."""
        self.health_address: str | None = None
        """Where that listens; `None` where there is none."""
        if health_listener is not None:
            self._probed, self.health_address = health_listener.listen([], _PROBE_BYTES)

    @property
    def calls_in_progress(self) -> int:
        """Translations that have not ended."""
        return self._calls.active

    async def start(self, models: ModelTable) -> None:
        """Answer; until `open`, calls are refused and health is NOT_SERVING. `models` may still be filled."""
        service = TranslationService(models, self._limits, self._calls, self._log_texts)
        translation_pb2_grpc.add_TranslationServiceServicer_to_server(  # type: ignore[no-untyped-call]
            service, self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._server.start()
        if self._probed is not None:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probed)
            await self._probed.start()

    def open(self) -> None:
        """Take calls; from now on health is SERVING. The models must be warm."""
        self._calls.open()
        self.set_serving(True)

    def set_serving(self, serving: bool) -> None:
        """Have health checks say SERVING or NOT_SERVING; calls are taken all the same."""
        self._health.say(serving=serving)

    def set_models(self, models: Mapping[str, bool]) -> None:
        """Have health checks of each model say SERVING or NOT_SERVING; calls are taken all the same.

        That of the server says NOT_SERVING where one of them does.
        """
        self._health.say_of_models(models)

    async def stop(self, drain_seconds: float, delay_seconds: float = 0.0) -> bool:
        """Say NOT_SERVING, then refuse new translations, wait for those in progress, close.

        Args:
            drain_seconds: That calls in progress may take.
            delay_seconds: That new ones are still taken.

        Returns:
            Whether every call in progress ended within `drain_seconds`.
        """
        self.set_serving(False)
        # Even without a delay, so that watchers are told before the first call is refused.
        await asyncio.sleep(delay_seconds if self._calls.ready else 0.0)
        drained = await self._calls.drain(drain_seconds)
        # Left now are health watches, which never end, calls that were given their time, replies on their
        # way out, and calls that have come this moment: cut off, they would be CANCELLED, which no client
        # takes for a reason to try again. gRPC drops one that comes while it stops, so none should.
        await self._calls.quiet(_REFUSAL_SECONDS, at_most=_QUIET_SECONDS)
        await self._server.stop(_REFUSAL_SECONDS)
        if self._probed is not None:
            await self._probed.stop(0.0)
        return drained
