"""More than the server can do: what is refused is refused at once, and what is accepted is done."""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import grpc.aio

from dragoman.v1.translation_pb2 import DecodingOptions, TranslateRequest
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub

TEXTS = [
    "Where is the nearest station?",
    "He sings in the garden because he is happy.",
    "I would like to drink some water.",
    "They have never been to London, but they will go there next year.",
    "The cat sleeps.",
]
BUSY = " ".join(["The man who reads a book sees the woman who sings and the dog that sleeps"] * 12)


def request_of(text: str, beam_size: int = 4) -> TranslateRequest:
    return TranslateRequest(texts=[text], options=DecodingOptions(beam_size=beam_size))


def test_exactly_what_exceeds_slots_and_queue_is_refused(serving, figures, full) -> None:
    slots, queue, excess = 8, 16, 40
    seconds: list[float] = []
    faults = {"DRAGOMAN_FAULTS": "step:sleep=0.1"}
    flags = ("--max-rows", slots, "--max-queue", queue)
    with serving(*flags, environment=faults) as server, server.unharmed(seconds=60), server.stub() as stub:
        long = request_of(BUSY, beam_size=1)
        decoding = []
        for number in range(slots):
            decoding.append(stub.Translate.future(long, timeout=120))
            server.wait_until(lambda n=number: server.held()["slots_in_use"] > n, "a slot taken")
        waiting = [stub.Translate.future(long, timeout=120) for _ in range(queue)]
        server.wait_until(lambda: server.held()["queue_depth"] == queue, "a full queue")

        def refused() -> str:
            started = time.monotonic()
            try:
                stub.Translate(long, timeout=120)
            except grpc.RpcError as error:
                seconds.append(time.monotonic() - started)
                hint = dict(error.trailing_metadata()).get("grpc-retry-pushback-ms")
                return f"{error.code().name}, hint {'given' if hint else 'missing'}"
            return "OK"

        codes = Counter(refused() for _ in range(excess))
        assert codes == {"RESOURCE_EXHAUSTED, hint given": excess}
        for call in (*decoding, *waiting):
            call.cancel()
    slowest = max(seconds)
    figures("slots + queue + 40 requests", "refused", f"{excess} of {excess}", "exactly")
    figures("slots + queue + 40 requests", "slowest refusal / ms", round(slowest * 1e3, 1), "50")
    if full:
        assert slowest < 0.05


@dataclass
class Outcomes:
    """What an open loop of calls came to."""

    seconds: list[float] = field(default_factory=list)
    """Of those that were answered."""
    elapsed: float = 0.0
    """From the first call to the last answer."""
    codes: Counter[str] = field(default_factory=Counter)

    @property
    def p99(self) -> float:
        return sorted(self.seconds)[math.ceil(0.99 * len(self.seconds)) - 1]


async def open_loop(address: str, rate: float, seconds: float, timeout: float) -> Outcomes:
    """Calls at a fixed rate, whatever becomes of them."""
    outcomes, texts = Outcomes(), itertools.cycle(TEXTS)
    options = [("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub = TranslationServiceStub(channel)

        async def call(text: str) -> None:
            started = time.monotonic()
            try:
                await stub.Translate(request_of(text), timeout=timeout)
            except grpc.aio.AioRpcError as error:
                outcomes.codes[error.code().name] += 1
            else:
                outcomes.codes["OK"] += 1
                outcomes.seconds.append(time.monotonic() - started)

        begun, tasks = time.monotonic(), []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
            tasks.append(asyncio.create_task(call(next(texts))))
        await asyncio.gather(*tasks)
        outcomes.elapsed = time.monotonic() - begun
    return outcomes


def capacity(server, seconds: float) -> float:
    """Calls per second of a closed loop of 64 callers."""
    with server.stub() as stub, ThreadPoolExecutor(64) as pool:
        texts = itertools.cycle(TEXTS)
        end = time.monotonic() + seconds

        def calls(_: int) -> int:
            count = 0
            while time.monotonic() < end:
                stub.Translate(request_of(next(texts)), timeout=60)
                count += 1
            return count

        return sum(pool.map(calls, range(64))) / seconds


SLOW = {"DRAGOMAN_FAULTS": "step:sleep=0.02"}
"""Has the server carry so little that callers on the same cores can ask for ten times as much."""


def test_goodput_stands_under_overload(serving, figures, full) -> None:
    seconds = 10.0 if full else 1.5
    queue = 64
    with serving("--max-rows", 32, "--max-queue", queue, environment=SLOW) as server, server.unharmed():
        peak = capacity(server, seconds)
        alone = asyncio.run(open_loop(server.address, peak / 2, seconds, 60.0))
        runs = {}
        for times in (1, 2, 5, 10) if full else (3,):
            runs[times] = asyncio.run(open_loop(server.address, times * peak, seconds, 60.0))
            assert set(runs[times].codes) <= {"OK", "RESOURCE_EXHAUSTED"}
        time.sleep(2.0)
        after = asyncio.run(open_loop(server.address, peak / 2, seconds / 2, 60.0))
    goodput = {times: run.codes["OK"] / run.elapsed for times, run in runs.items()}
    best = max(goodput.values())
    bound = queue / best + alone.p99
    for times, run in runs.items():
        case = f"{times} times capacity"
        figures(case, "goodput / its peak", round(goodput[times] / best, 3), "0.95 at least")
        figures(case, "p99 of accepted / s", round(run.p99, 3), f"queue and service: {bound:.3f}")
    figures("2 s after overload", "p99 / s", round(after.p99, 3), f"before: {alone.p99:.3f}")
    assert set(after.codes) == {"OK"}
    if full:
        assert min(goodput.values()) >= 0.95 * best
        assert max(run.p99 for run in runs.values()) <= 1.1 * bound


def test_little_is_spent_on_what_misses_its_deadline(serving, figures, full) -> None:
    seconds = 20.0 if full else 2.0
    with serving("--max-rows", 32, "--max-queue", 4096, environment=SLOW) as server, server.unharmed():
        peak = capacity(server, 3.0 if full else 1.0)
        before = server.by_label("dragoman_row_steps_total", "outcome")
        outcomes = asyncio.run(open_loop(server.address, 5 * peak, seconds, timeout=1.0))
        after = server.by_label("dragoman_row_steps_total", "outcome")
    spent = {outcome: after[outcome] - before.get(outcome, 0.0) for outcome in after}
    wasted = spent.get("deadline", 0.0) + spent.get("cancelled", 0.0)
    share = wasted / sum(spent.values())
    figures("1 s deadlines at 5 times capacity", "row-steps wasted / %", round(100 * share, 2), "5 at most")
    figures("1 s deadlines at 5 times capacity", "outcomes", str(dict(outcomes.codes)), "")
    assert outcomes.codes["OK"] > 0
    if full:
        assert share <= 0.05


def test_a_small_client_beside_a_greedy_one(serving, figures, full) -> None:
    seconds = 10.0 if full else 1.5

    def latencies(server, duration: float) -> list[float]:
        found, end = [], time.monotonic() + duration
        with server.stub() as stub:
            while time.monotonic() < end:
                started = time.monotonic()
                stub.Translate(request_of(TEXTS[1]), timeout=60)
                found.append(time.monotonic() - started)
        return sorted(found)

    with serving("--max-rows", 32, environment=SLOW) as server, server.unharmed(), server.stub() as greedy:
        alone = latencies(server, seconds)
        stop = threading.Event()

        def flood(_: int) -> None:
            while not stop.is_set():
                greedy.Translate(request_of(TEXTS[3]), timeout=120)

        with ThreadPoolExecutor(200) as pool:
            flooding = [pool.submit(flood, number) for number in range(200)]
            server.wait_until(lambda: server.held()["queue_depth"] > 100, "a long queue")
            beside = latencies(server, seconds)
            stop.set()
            for one in flooding:
                one.result()
    p99 = [values[math.ceil(0.99 * len(values)) - 1] for values in (alone, beside)]
    figures("small client beside a greedy one", "p99 / p99 alone", round(p99[1] / p99[0], 2), "2 at most")
    medians = statistics.median(beside) / statistics.median(alone)
    figures("small client beside a greedy one", "median / median alone", round(medians, 2), "")
    if full:
        assert p99[1] <= 2 * p99[0]
