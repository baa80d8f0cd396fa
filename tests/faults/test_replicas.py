"""Several servers behind one client: one that stops, dies or is not well costs no call."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

import dragoman

TEXT = "Where is the nearest station?"


class Load:
    """Calls of several threads of one client, or of tasks of one event loop, until told to stop."""

    def __init__(self, endpoint: str, asynchronous: bool) -> None:
        self.outcomes: Counter[str] = Counter()
        self._endpoint = endpoint
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run_async if asynchronous else self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with dragoman.Client(self._endpoint, timeout=30) as client, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: self._call(client), range(8)))

    def _call(self, client: dragoman.Client) -> None:
        while not self._stop.is_set():
            try:
                client.translate(TEXT)
                self.outcomes["OK"] += 1
            except dragoman.DragomanError as error:
                self.outcomes[f"{type(error).__name__}: {error}"] += 1

    def _run_async(self) -> None:
        async def call(client: dragoman.AsyncClient) -> None:
            while not self._stop.is_set():
                try:
                    await client.translate(TEXT)
                    self.outcomes["OK"] += 1
                except dragoman.DragomanError as error:
                    self.outcomes[f"{type(error).__name__}: {error}"] += 1

        async def calls() -> None:
            async with dragoman.AsyncClient(self._endpoint, timeout=30) as client:
                await asyncio.gather(*(call(client) for _ in range(8)))

        asyncio.run(calls())


def calls_of(server) -> float:
    return server.metrics().get("dragoman_calls_total", 0.0)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_replica_that_goes_costs_no_call(serving, figures, full, asynchronous, how) -> None:
    seconds = 5.0 if full else 1.0
    with serving() as staying, serving() as going:
        with Load(f"{staying.address},{going.address}", asynchronous) as load:
            going.wait_until(lambda: calls_of(going) > 20, "both get calls")
            staying.wait_until(lambda: calls_of(staying) > 20, "both get calls")
            if how == "SIGKILL":
                going.process.kill()
            else:
                assert going.stop() == 0
            time.sleep(seconds)
        assert set(load.outcomes) == {"OK"}
    kind = "asyncio" if asynchronous else "threads"
    figures(f"{how} to one of two replicas, {kind}", "calls failed", f"0 of {load.outcomes['OK']}", "none")


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_a_rolling_restart_costs_no_call(serving, figures, asynchronous) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving()) for _ in range(2)]
        with Load(",".join(server.address for server in servers), asynchronous) as load:
            for old in servers:
                old.wait_until(lambda old=old: calls_of(old) > 20, "calls")
                assert old.stop() == 0
                new = stack.enter_context(serving("--port", old.address.rpartition(":")[2]))
                # Ready for an orchestrator: the next is stopped at once, whoever has connected to this one.
        new.wait_until(lambda: calls_of(new) > 0, "calls")
        assert set(load.outcomes) == {"OK"}
    kind = "asyncio" if asynchronous else "threads"
    figures(f"rolling restart of two replicas, {kind}", "calls failed", f"0 of {load.outcomes['OK']}", "none")


def test_a_replica_that_is_not_well_gets_no_calls(serving, token_of) -> None:
    faults = {"DRAGOMAN_FAULTS": f"step:sleep=4@token={token_of('Bananas')}"}
    with serving() as well, serving("--stall-seconds", 0.5, environment=faults) as ill:
        with dragoman.Client(ill.address, timeout=3) as client, pytest.raises(dragoman.DragomanError):
            client.translate("Bananas")
        ill.wait_until(lambda: ill.health() == "NOT_SERVING", "NOT_SERVING")
        with Load(f"{well.address},{ill.address}", asynchronous=False) as load:
            well.wait_until(lambda: calls_of(well) > 50, "calls")
        assert set(load.outcomes) == {"OK"}
        refused = ill.metrics()["dragoman_calls_total"]
        with Load(f"{well.address},{ill.address}", asynchronous=False) as load:
            ill.wait_until(lambda: calls_of(ill) > refused + 20, "calls again, once it is well")
        assert set(load.outcomes) == {"OK"}
