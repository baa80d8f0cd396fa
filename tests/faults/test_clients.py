"""Clients that read nothing, stand still, or die: what they hold is freed, and nobody else notices."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from dragoman.v1.translation_pb2 import DecodingOptions, TranslateStreamRequest

# Several hypotheses of a long text: more than HTTP/2 has a server send to a client that does not read.
LONG = ("The man who reads a book sees the woman who sings, and the dog sees the cat. " * 400)[:30_000]
REQUEST = TranslateStreamRequest(text=LONG, options=DecodingOptions(beam_size=4, n_best=4))
SHORT = "He sings in the garden because he is happy, and the woman reads a book."
NARROW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
"""Has a client take no more than it reads."""
CALLER = f"""
import asyncio, sys, dragoman

async def call_for_ever(client):
    while True:
        await client.translate({LONG[:6000]!r}, timeout=600)

async def main(address, calls):
    async with dragoman.AsyncClient(address) as client:
        await client.translate("Hello!")
        print("calling", flush=True)
        await asyncio.gather(*(call_for_ever(client) for _ in range(calls)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def status(call: grpc.Call) -> str:
    """How a stream ends."""
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_readers_that_never_read_are_given_up(serving, figures, full) -> None:
    readers = 20 if full else 4
    with serving("--write-seconds", 3, "--max-queue", 100_000) as server, server.stub(*NARROW) as stub:
        # The memory that so many calls need stays for a while: they are made once before.
        with ThreadPoolExecutor(readers) as pool:
            calls = [stub.TranslateStream(REQUEST, timeout=600) for _ in range(readers)]
            assert set(pool.map(status, calls)) == {"OK"}
        with server.unharmed():
            calls = [stub.TranslateStream(REQUEST, timeout=600) for _ in range(readers)]
            server.wait_until(lambda: server.held()["calls_in_progress"] == readers, "all calls begun")
            # One that reads gets its translation meanwhile.
            assert status(stub.TranslateStream(REQUEST, timeout=600)) == "OK"
            server.wait_until(lambda: not any(server.held().values()), "all given up", 300)
            assert {status(call) for call in calls} == {"CANCELLED"}
    figures("readers that never read", "streams ended by the server", f"{readers} of {readers}", "all")


@contextlib.contextmanager
def streams(server, count: int, *, read: bool) -> Iterator[None]:
    """So many streams of a long text in progress, each on a connection of its own, read to the end or not."""
    with ThreadPoolExecutor(count) as pool, contextlib.ExitStack() as stack:
        stubs = [stack.enter_context(server.stub(*NARROW)) for _ in range(count)]
        calls = [stub.TranslateStream(REQUEST) for stub in stubs]  # no deadline that refuses them
        for call in calls:
            stack.callback(call.cancel)
        server.wait_until(lambda: server.held()["calls_in_progress"] == count, "all calls begun")
        if read:
            pool.map(status, calls)
        time.sleep(2.0)  # more than their windows take has been written
        yield
        # Those that nobody reads have not been given up meanwhile.
        assert read or server.held()["calls_in_progress"] == count
    server.wait_until(lambda: not any(server.held().values()), "nothing in progress", 60)


def gaps(stub, seconds: float) -> list[float]:
    """Times between the tokens of streams of a short text, one stream at a time, in seconds."""
    request, found = TranslateStreamRequest(text=SHORT, options=DecodingOptions(beam_size=1)), []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        reply = stub.TranslateStream(request, timeout=600)
        times = [time.monotonic() for message in reply if message.text_delta]
        found += [later - earlier for earlier, later in itertools.pairwise(times)]
    return found


def test_readers_that_never_read_slow_nobody(serving, figures, full) -> None:
    """Steps of 20 ms: what is seen is the server's, not that its callers have the same cores."""
    readers, rounds, seconds = (20, 5, 6.0) if full else (4, 1, 1.0)
    slow = {"DRAGOMAN_FAULTS": "step:sleep=0.02"}
    found: dict[str, list[float]] = {"alone": [], "read": [], "unread": []}
    with (
        serving("--write-seconds", 120, "--max-queue", 100_000, environment=slow) as server,
        server.stub() as stub,
    ):
        for _ in range(rounds):
            found["alone"] += gaps(stub, seconds)
            for name in ("read", "unread"):
                with streams(server, readers, read=name == "read"):
                    found[name] += gaps(stub, seconds)
        assert server.translation() == server.usual
    latest = {name: float(np.percentile(some, 99)) for name, some in found.items()}
    for name in ("alone", "read"):
        figures(
            f"time between tokens beside {readers} streams nobody reads: 99th percentile",
            *(f"against {name}", f"{latest['unread'] / latest[name]:.2f} ({latest['unread'] * 1e3:.1f} ms)"),
            "1.1",
        )
    assert all(found.values())
    if full:
        assert latest["unread"] <= 1.1 * latest["read"]


@contextlib.contextmanager
def callers(address: str, count: int, calls: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Client processes, each in the middle of so many calls on a connection of its own."""
    words = [sys.executable, "-c", CALLER, address, str(calls)]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "calling\n"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.mark.parametrize(
    ("number", "state", "bound", "calls"),
    [(signal.SIGKILL, "killed", 2.0, 20), (signal.SIGSTOP, "frozen", 5.0, 1)],
)
def test_what_lost_clients_hold_is_freed(serving, figures, full, number, state, bound, calls) -> None:
    """Of the killed there are 1,000: 50 processes with 20 calls each."""
    count = 50 if full else 3
    with (
        serving("--max-queue", 1_000_000) as server,
        server.unharmed(memory_mib=300),
        callers(server.address, count, calls) as processes,
    ):
        # Between two of its calls a client is in none.
        server.wait_until(
            lambda: server.held()["calls_in_progress"] >= 0.9 * count * calls, "all in their calls", 120
        )
        for process in processes:
            os.kill(process.pid, number)
        started = time.monotonic()
        server.wait_until(lambda: not any(server.held().values()), f"all {state} clients freed", 30)
        seconds = time.monotonic() - started
    figures(
        f"{count} client processes {state}, {calls} calls each",
        "freed after / s",
        round(seconds, 2),
        f"{bound:g} at most",
    )
    if full:
        assert seconds <= bound
