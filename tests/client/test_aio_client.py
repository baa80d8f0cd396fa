from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import dragoman
from dragoman_server.errors import EngineError


@pytest.fixture
def run(server: Any) -> Callable[[Callable[[dragoman.AsyncClient], Awaitable[None]]], None]:
    """Runs a scenario with a client on an event loop of its own."""

    def run(scenario: Callable[[dragoman.AsyncClient], Awaitable[None]]) -> None:
        async def connected() -> None:
            async with dragoman.AsyncClient(server.address) as client:
                await client.wait_ready(10)
                await scenario(client)

        asyncio.run(connected())

    return run


def test_calls(run: Any) -> None:
    async def scenario(client: dragoman.AsyncClient) -> None:
        assert (await client.translate("one", beam_size=2)).text == "ONE"
        assert [t.text for t in await client.translate(["one", "two"])] == ["ONE", "TWO"]
        [summary] = await client.models()
        assert (await client.model("shout")).summary == summary
        results = await asyncio.gather(*(client.translate(f"text {i}") for i in range(20)))
        assert [result.text for result in results] == [f"TEXT {i}" for i in range(20)]

    run(scenario)


def test_streams(run: Any) -> None:
    async def scenario(client: dragoman.AsyncClient) -> None:
        async with client.stream("One two. Three.") as stream:
            pieces = [piece async for piece in stream]
            assert len(pieces) > 2
            assert "".join(pieces) == (await stream.result()).text == "ONE TWO. THREE."

    run(scenario)


def test_errors_are_those_of_the_client(run: Any, engine: Any) -> None:
    async def scenario(client: dragoman.AsyncClient) -> None:
        with pytest.raises(dragoman.InvalidArgument) as caught:
            await client.translate("x", beam_size=0)
        assert caught.value.field == "options.beam_size"
        with pytest.raises(dragoman.NotFound):
            await client.model("nope")
        engine.fails_with = EngineError("broken")
        with pytest.raises(dragoman.ServerError):
            await client.stream("x").result()
        engine.holding = True
        with pytest.raises(dragoman.DeadlineExceeded):
            await client.translate("x", timeout=0.2)
        engine.capacity = 0
        with pytest.raises(dragoman.ResourceExhausted) as full:
            await client.translate("x")
        assert full.value.retry_after == 0.25

    run(scenario)


def test_cancelling_frees_the_server(run: Any, engine: Any) -> None:
    async def scenario(client: dragoman.AsyncClient) -> None:
        engine.holding = True
        task = asyncio.create_task(client.translate("One. Two."))
        await asyncio.to_thread(engine.wait_until, lambda: len(engine.held) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(engine.wait_until, lambda: len(engine.cancelled) == 2)
        async with client.stream("One. Two."):
            await asyncio.to_thread(engine.wait_until, lambda: len(engine.held) == 2)
        await asyncio.to_thread(engine.wait_until, lambda: len(engine.cancelled) == 4)

    run(scenario)


def test_both_clients_offer_the_same() -> None:
    for name, method in inspect.getmembers(dragoman.Client, inspect.isfunction):
        if not name.startswith("_"):
            twin = inspect.signature(getattr(dragoman.AsyncClient, name))
            assert list(twin.parameters) == list(inspect.signature(method).parameters)
