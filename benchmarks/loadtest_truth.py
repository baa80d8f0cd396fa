"""The load generator against servers whose behaviour is known: is what it reports what they did?

A server stands still for 2 of every 10 seconds, answers after a fixed 20 ms, or refuses every tenth request;
the percentiles, goodput and errors that follow from that are computed, and compared with those reported. The
same stall is measured in the closed loop, which hides it. Then the generator is driven as fast as it goes
against a server that does nothing.

    python benchmarks/loadtest_truth.py [--seconds 20] [--out truth.json]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

from dragoman.options import TranslateOptions
from dragoman.v1 import translation_pb2 as pb
from dragoman_loadtest.corpus import Corpus
from dragoman_loadtest.figures import figures
from dragoman_loadtest.options import Phases, Target, Traffic
from dragoman_loadtest.run import Plan, measure
from dragoman_loadtest.slo import parse_objectives

FAKE = Path(__file__).parent.parent / "tests" / "loadtest" / "fake_server.py"
CORPUS = Corpus("texts", tuple(f"text number {i}" for i in range(100)))
DELAY, PAUSE, PERIOD, BOUND = 0.02, 2.0, 10.0, 0.25
QUANTILES = (0.5, 0.9, 0.97, 0.99)


@contextlib.contextmanager
def fake_server(*flags: object) -> Iterator[str]:
    """A scripted server in a process of its own; yields its address."""
    words = [sys.executable, str(FAKE), *map(str, flags)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.communicate()  # the end of its input is its end


def floor(address: str) -> dict[float, float]:
    """Quantiles of the seconds of a thousand calls to a server that does nothing, by a bare gRPC client."""

    async def calls() -> list[float]:
        request = pb.TranslateRequest(texts=["text number 1"]).SerializeToString()
        seconds = []
        async with grpc.aio.insecure_channel(address) as channel:
            call: Any = channel.unary_unary(
                "/dragoman.v1.TranslationService/Translate",
                response_deserializer=pb.TranslateResponse.FromString,
            )
            for _ in range(1000):
                await asyncio.sleep(0.01)
                started = time.perf_counter()
                await call(request)
                seconds.append(time.perf_counter() - started)
        return seconds

    seconds = asyncio.run(calls())
    return {quantile: float(np.quantile(seconds, quantile)) for quantile in QUANTILES}


def reported(address: str, traffic: Traffic, seconds: float, slo: str = "p97<250ms") -> dict[str, Any]:
    """The figures of one run."""
    plan = Plan(
        target=Target(endpoint=address),
        traffic=traffic,
        options=TranslateOptions(),
        corpus=CORPUS,
        phases=Phases(duration_seconds=seconds, warm_up_seconds=0.0),
        objectives=parse_objectives(slo),
        early_stop=False,
    )
    return figures(plan, measure(plan))


def fixed(quantile: float) -> float:
    """Quantile of the latency of a server that always takes as long."""
    return DELAY


def stalling(quantile: float) -> float:
    """Of one that stands still: who arrives while it does waits evenly between nothing and the pause."""
    free = 1.0 - PAUSE / PERIOD
    return DELAY + (PAUSE * (quantile - free) / (1.0 - free) if quantile > free else 0.0)


def stalling_goodput(rate: float) -> float:
    """Requests per second that it answers within the bound."""
    return rate * (1.0 - (PAUSE - (BOUND - DELAY)) / PERIOD)


def compared(
    truth: Callable[[float], float], extra: dict[float, float], found: dict[str, Any]
) -> dict[str, Any]:
    """Each quantile: truth, reported, and how far apart."""
    rows = {}
    for quantile in QUANTILES:
        name, expected = f"p{100 * quantile:g}", truth(quantile) + extra[quantile]
        measured = found["times"]["latency"][name]
        rows[name] = {"truth": expected, "reported": measured, "apart": measured / expected - 1.0}
    return rows


def scenarios(seconds: float) -> dict[str, Any]:
    """All of them."""
    # What the wire and the fake server's machinery take is not in the script: it is added to the truth.
    with fake_server() as address:
        extra = floor(address)
    results: dict[str, Any] = {"floor_seconds": {f"p{100 * q:g}": seconds for q, seconds in extra.items()}}
    rate = 100.0
    steady = Traffic(rate=rate, arrivals="constant")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "held.txt"
        with fake_server("--delay", DELAY, "--log", log) as address:
            found = reported(address, steady, seconds)
        took = np.loadtxt(log)
    results["fixed"] = compared(fixed, extra, found)
    # A sleeping process is woken late, by its own clock: what the server did is not quite what it should.
    results["fixed, by the server's clock"] = compared(lambda q: float(np.quantile(took, q)), extra, found)
    with fake_server("--delay", DELAY, "--pause", PAUSE, "--pause-every", PERIOD) as address:
        found = reported(address, steady, seconds)
        results["stalling, open loop"] = compared(stalling, extra, found)
        goodput, truth = found["rates"]["goodput"], stalling_goodput(rate)
        results["stalling, goodput"] = {"truth": truth, "reported": goodput, "apart": goodput / truth - 1.0}
        closed = reported(address, Traffic(concurrency=2), seconds)
        results["stalling, closed loop"] = compared(stalling, extra, closed)
    with fake_server("--delay", DELAY, "--refuse-every", 10) as address:
        found = reported(address, steady, seconds)
        errors, truth = found["errors"]["by_code"], rate * seconds / 10.0
        refused = errors.get("RESOURCE_EXHAUSTED", 0)
        results["refusals"] = {"truth": truth, "reported": refused, "apart": refused / truth - 1.0}
        goodput, truth = found["rates"]["goodput"], 0.9 * rate
        results["refusals, goodput"] = {"truth": truth, "reported": goodput, "apart": goodput / truth - 1.0}
    return results


def capacity(seconds: float) -> list[dict[str, Any]]:
    """Rates against a server that does nothing: until when is the generator not the bottleneck?"""
    rows = []
    with fake_server("--nothing") as address:
        for rate in (500.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0):
            found = reported(address, Traffic(rate=rate), seconds)
            check = found["self_check"]
            rows.append(
                {
                    "offered_per_second": rate,
                    "answered_per_second": found["rates"]["answered"],
                    "send_lag_p99_ms": 1e3 * check["send_lag"]["p99"],
                    "client_cpu_share": check["client_cpu_share"],
                    "processes": check["processes"],
                    "valid": check["valid"],
                    "reasons": check["reasons"],
                }
            )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each scenario; a multiple of 10")
    parser.add_argument("--out", type=Path, help="file for the results")
    options = parser.parse_args()
    results = {"scenarios": scenarios(options.seconds), "capacity": capacity(min(options.seconds, 10.0))}
    text = json.dumps(results, indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
