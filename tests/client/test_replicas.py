"""Several servers behind one client: calls go, in turns, to those that say SERVING."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import dragoman
from dragoman_server.config import CallLimits
from dragoman_server.service.listening import Listener


@pytest.fixture
def replicas(start_server: Any, model: Any, engine: Any) -> list[Any]:
    return [start_server(model(engine)) for _ in range(2)]


def translations(server: Any) -> list[str]:
    return [code for method, code in server.calls if method == "Translate"]


def call_until(client: dragoman.Client, condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        client.translate("x")
    raise AssertionError("not within 2000 calls")


def test_calls_go_to_all_in_turns(replicas: list[Any]) -> None:
    with dragoman.Client([server.address for server in replicas]) as client:
        call_until(client, lambda: all(map(translations, replicas)))
        before = [len(translations(server)) for server in replicas]
        for _ in range(6):
            client.translate("x")
    assert [len(translations(server)) - old for server, old in zip(replicas, before, strict=True)] == [3, 3]


def test_a_server_that_does_not_say_serving_gets_no_calls(replicas: list[Any]) -> None:
    ill, well = replicas
    with dragoman.Client(f"{ill.address}, {well.address}") as client:
        call_until(client, lambda: all(map(translations, replicas)))
        ill.loop.call_soon_threadsafe(ill.grpc.set_serving, False)

        def none_of_six_went_to_it() -> bool:
            before = len(translations(ill))
            for _ in range(6):
                client.translate("x")
            return len(translations(ill)) == before

        call_until(client, none_of_six_went_to_it)
        for _ in range(10):
            assert none_of_six_went_to_it()
        ill.loop.call_soon_threadsafe(ill.grpc.set_serving, True)
        call_until(client, lambda: not none_of_six_went_to_it())


def test_the_asyncio_client_does_as_the_other(replicas: list[Any]) -> None:
    async def run() -> None:
        async with dragoman.AsyncClient([server.address for server in replicas]) as client:
            for _ in range(2000):
                if all(map(translations, replicas)):
                    return
                await client.translate("x")
            raise AssertionError("one server gets no calls")

    asyncio.run(run())


def test_a_server_that_loads_is_waited_for(start_server: Any, model: Any, engine: Any) -> None:
    server = start_server(model(engine))
    server.loop.call_soon_threadsafe(server.grpc.set_serving, False)
    with dragoman.Client(server.address) as client:
        with pytest.raises(dragoman.DeadlineExceeded):
            client.wait_ready(0.5)
        server.loop.call_soon_threadsafe(server.grpc.set_serving, True)
        client.wait_ready(10)


def test_aged_connections_break_no_call(start_server: Any, model: Any, engine: Any) -> None:
    server = start_server(model(engine), listener=Listener(max_connection_age_seconds=0.2))
    with dragoman.Client(server.address) as client:
        call_until(client, lambda: len(translations(server)) == 500)
    assert set(translations(server)) == {"OK"}


@pytest.mark.parametrize(("text_bytes", "attempts"), [(30_000, 5), (150_000, 1)])
def test_a_request_is_sent_again_as_long_as_it_may_be_welcome(
    start_server: Any, model: Any, engine: Any, text_bytes: int, attempts: int
) -> None:
    limits = CallLimits(max_texts=40, max_text_bytes=2**20)
    server = start_server(model(engine, max_source_tokens=2**20, max_call_tokens=2**30), limits=limits)
    engine.capacity = 0
    with dragoman.Client(server.address) as client, pytest.raises(dragoman.ResourceExhausted):
        client.translate(["x" * text_bytes] * 40)
    engine.wait_until(lambda: len(translations(server)) == attempts)
