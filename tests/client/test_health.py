"""`dragoman health`, and the port that answers health checks alone."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from dragoman.cli import main
from dragoman.v1.translation_pb2 import TranslateRequest
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub
from dragoman_server.config import CallLimits, ServerConfig
from dragoman_server.models import ModelTable
from dragoman_server.service.certificates import server_credentials
from dragoman_server.service.doors import Doors
from dragoman_server.service.listening import Listener
from dragoman_server.service.server import GrpcServer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def health(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(["health", *words])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_a_server_that_takes_calls_is_serving(health: Run, server: Any) -> None:
    assert health("--endpoint", server.address) == (0, "SERVING\n", "")
    code, output, _ = health("--endpoint", server.address, "--json")
    assert (code, json.loads(output)) == (0, {"status": "SERVING"})


def test_a_server_that_drains_is_not(health: Run, server: Any) -> None:
    server.loop.call_soon_threadsafe(server.grpc.set_serving, False)
    assert health("--endpoint", server.address) == (1, "NOT_SERVING\n", "")


def test_what_is_unknown_is_not_serving(health: Run, server: Any) -> None:
    code, output, error = health("nobody", "--endpoint", server.address)
    assert (code, output) == (1, "")
    assert error == f"dragoman: error: {server.address} does not say whether it is serving: no such service\n"


def test_nobody_there(health: Run) -> None:
    code, output, error = health("--endpoint", "127.0.0.1:1", "--timeout", "1")
    assert (code, output) == (1, "")
    assert error.startswith("dragoman: error: 127.0.0.1:1 does not say whether it is serving: ")
    assert error.count("\n") == 1


def test_a_mistake_is_told_from_an_answer(health: Run) -> None:
    for mistake in (
        ("--timeout", "soon"),
        ("--endpoint", "127.0.0.1:1,127.0.0.1:2"),
        ("--token-file", "/nonexistent"),
    ):
        code, output, error = health(*mistake)
        assert (code, output) == (2, "")
        assert error.startswith("dragoman: error: ")
        assert error.count("\n") == 1


def test_probes_need_neither_certificate_nor_token_and_get_nothing_else(
    model: Any, engine: Any, authority: Any, health: Run
) -> None:
    certificate, key = authority.issue("server")
    started, stop = threading.Event(), []

    async def serve() -> None:
        listener = Listener(credentials=server_credentials(certificate, key, authority.ca))
        grpc_server = GrpcServer(listener, CallLimits(), lambda call: None, health_listener=Listener())
        ended = asyncio.Event()
        stop.extend([grpc_server, asyncio.get_running_loop(), ended])
        await grpc_server.start(ModelTable([model(engine)]))
        grpc_server.set_models({"shout": True})
        grpc_server.open()
        started.set()
        await ended.wait()
        await grpc_server.stop(0.0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(10)
        grpc_server, loop, ended = stop
        address = grpc_server.health_address
        assert address != grpc_server.address
        assert health("--endpoint", address) == (0, "SERVING\n", "")
        assert health("shout", "--endpoint", address) == (0, "SERVING\n", "")
        assert health("--endpoint", grpc_server.address, "--timeout", "2")[0] == 1  # TLS there
        with grpc.insecure_channel(address) as channel:
            calls = [
                lambda: TranslationServiceStub(channel).Translate(TranslateRequest(texts=["x"]), timeout=5),
                lambda: list(
                    ServerReflectionStub(channel).ServerReflectionInfo(
                        iter([ServerReflectionRequest(list_services="")]), timeout=5
                    )
                ),
            ]
            for call in calls:
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
            watch = HealthStub(channel).Watch(HealthCheckRequest())
            assert next(watch).status == HealthCheckResponse.SERVING
            loop.call_soon_threadsafe(grpc_server.set_serving, False)
            assert next(watch).status == HealthCheckResponse.NOT_SERVING
            watch.cancel()
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)


def test_health_has_a_port_of_its_own_only_where_it_is_asked_for() -> None:
    assert Doors(ServerConfig(), lambda call: None).health is None
    doors = Doors(ServerConfig(health_port=0, health_host="0.0.0.0"), lambda call: None)
    assert doors.health is not None
    assert doors.health.host == "0.0.0.0"
    assert doors.health.credentials is doors.health.authentication is None
    with pytest.raises(ValueError, match="--health-port must be between 0 and 65535, not 65536"):
        ServerConfig(health_port=65536)
