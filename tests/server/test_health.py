"""What the port answers while models load, while calls are taken, and while the server drains."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub
from dragoman_server.config import CallLimits
from dragoman_server.models import ModelTable
from dragoman_server.service.health import LIVENESS, Health
from dragoman_server.service.listening import Listener
from dragoman_server.service.server import SERVICE_NAME, GrpcServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# The window of a stream: less than any message.
NO_ROOM = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]


def asked(name: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


@asynccontextmanager
async def loading(*models: Any) -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel]]:
    """A server that answers but takes no calls yet."""
    server = GrpcServer(Listener(), CallLimits(), lambda call: None)
    await server.start(ModelTable(models))
    async with grpc.aio.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel:
        yield server, channel
        await server.stop(0.0)


def test_before_the_models_are_loaded_everything_is_refused(model: Any, engine: Any) -> None:
    async def run() -> None:
        async with loading(model(engine)) as (server, channel):
            health, stub = HealthStub(channel), TranslationServiceStub(channel)
            for name in ("", SERVICE_NAME):
                assert (await health.Check(asked(name))).status == NOT_SERVING
            for call in (
                stub.Translate(pb.TranslateRequest(texts=["one"])),
                stub.TranslateStream(pb.TranslateStreamRequest(text="one")).read(),
                stub.ListModels(pb.ListModelsRequest()),
                stub.GetModel(pb.GetModelRequest(name="shout")),
            ):
                with pytest.raises(grpc.RpcError, match="loading its models") as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            server.open()
            assert (await health.Check(asked(SERVICE_NAME))).status == SERVING
            assert (await stub.Translate(pb.TranslateRequest(texts=["one"]))).model == "shout"

    asyncio.run(run())
    assert len(engine.submitted) == 1


def test_watchers_are_told_of_every_change(model: Any, engine: Any) -> None:
    async def run() -> None:
        async with loading(model(engine)) as (server, channel):
            watch = HealthStub(channel).Watch(asked(SERVICE_NAME))
            assert (await watch.read()).status == NOT_SERVING
            server.open()
            assert (await watch.read()).status == SERVING
            stopping = asyncio.create_task(server.stop(0.0))
            assert (await watch.read()).status == NOT_SERVING
            assert await stopping

    asyncio.run(run())


def test_each_model_has_a_state_of_its_own(model: Any, engine: Any) -> None:
    async def run() -> None:
        async with loading(model(engine)) as (server, channel):
            health = HealthStub(channel)

            async def states() -> list[int]:
                return [
                    (await health.Check(asked(name))).status for name in ("", SERVICE_NAME, "shout", "other")
                ]

            server.set_models({"shout": True, "other": True})
            assert await states() == [NOT_SERVING] * 4
            server.open()
            assert await states() == [SERVING] * 4
            watch = health.Watch(asked("shout"))
            assert (await watch.read()).status == SERVING
            server.set_models({"shout": False, "other": True})
            assert await states() == [NOT_SERVING, NOT_SERVING, NOT_SERVING, SERVING]
            assert (await watch.read()).status == NOT_SERVING
            server.set_models({"other": True})
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            with pytest.raises(grpc.RpcError, match="no such service") as caught:
                await states()
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert (await health.Check(asked(""))).status == SERVING

    asyncio.run(run())


def test_only_a_network_of_no_use_makes_the_server_better_started_anew(model: Any, engine: Any) -> None:
    async def run() -> None:
        async with loading(model(engine)) as (server, channel):
            watch = HealthStub(channel).Watch(asked(LIVENESS))
            assert (await watch.read()).status == SERVING
            server.open()
            server.set_models({"shout": False})
            assert (await watch.read()).status == NOT_SERVING
            server.set_models({"shout": True})
            assert (await watch.read()).status == SERVING
            watch.cancel()

    asyncio.run(run())


def test_who_drains_is_not_to_be_started_anew() -> None:
    async def run() -> None:
        health = Health("")
        health.say_of_models({"shout": True})
        for serving in (False, True, False):
            health.say(serving)
            assert (await health.Check(asked(""), None)).status == (SERVING if serving else NOT_SERVING)
            assert (await health.Check(asked(LIVENESS), None)).status == SERVING

    asyncio.run(run())


def test_every_name_is_listed_with_its_state(model: Any, engine: Any) -> None:
    async def run() -> None:
        async with loading(model(engine)) as (server, channel):
            server.set_models({"shout": True})
            for expected in (NOT_SERVING, SERVING):
                statuses = (await HealthStub(channel).List(health_pb2.HealthListRequest())).statuses
                listed = {name: response.status for name, response in statuses.items()}
                assert listed == {"": expected, SERVICE_NAME: expected, "shout": expected, LIVENESS: SERVING}
                server.open()

    asyncio.run(run())


def test_an_unknown_service_is_said_to_be_one(model: Any, engine: Any) -> None:
    async def run() -> None:
        async with loading(model(engine)) as (_, channel):
            watch = HealthStub(channel).Watch(asked("nope"))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

    asyncio.run(run())


@pytest.fixture
def unread_watch(server: Any) -> Iterator[None]:
    with grpc.insecure_channel(server.address, options=NO_ROOM) as channel:
        watch = HealthStub(channel).Watch(asked(SERVICE_NAME))
        watch.initial_metadata()
        yield


def test_a_watcher_that_does_not_read_holds_up_nobody(server: Any, unread_watch: None) -> None:
    with grpc.insecure_channel(server.address) as channel:
        states = iter(HealthStub(channel).Watch(asked(SERVICE_NAME)))
        assert next(states).status == SERVING
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert next(states).status == NOT_SERVING
        stopping.join(5)
        assert not stopping.is_alive()


def test_calls_are_taken_during_the_delay(model: Any, engine: Any) -> None:
    async def run() -> None:
        async with loading(model(engine)) as (server, channel):
            server.open()
            stub = TranslationServiceStub(channel)
            watch = HealthStub(channel).Watch(asked(SERVICE_NAME))
            assert (await watch.read()).status == SERVING
            stopping = asyncio.create_task(server.stop(0.0, delay_seconds=0.5))
            assert (await watch.read()).status == NOT_SERVING
            assert (await stub.Translate(pb.TranslateRequest(texts=["one"]))).model == "shout"
            assert not stopping.done()
            await stopping

    asyncio.run(run())


def test_a_server_at_rest_stops_at_once_and_in_time(server: Any) -> None:
    assert server.stop(drain_seconds=0.0)


def test_a_watcher_that_leaves_unread_is_no_internal_error(
    server: Any, engine: Any, unread_watch: None, caplog: pytest.LogCaptureFixture
) -> None:
    with grpc.insecure_channel(server.address, options=NO_ROOM) as channel:
        watch = HealthStub(channel).Watch(asked(SERVICE_NAME))
        watch.initial_metadata()
        watch.cancel()
        engine.wait_until(lambda: ("Watch", "CANCELLED") in server.calls)
    assert not caplog.records
