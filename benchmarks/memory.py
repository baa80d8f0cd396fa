"""Resident memory of the server over many requests of random length, and its peak beside CTranslate2's.

Requests are pieces of the corpus of random length, 64 to a call, four calls at once. Reports the slope of
resident memory over the second half, in MB per 10,000 requests, and both servers' peaks over the same
requests.

    python benchmarks/memory.py --checkpoint DIR --bundle DIR --corpus FILE --out FILE [--requests 50000]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import dragoman
from dragoman_loadtest.machine import describe_machine
from serving import Served, ctranslate2_served, peer_arguments, served

TEXTS_PER_CALL, CALLS = 64, 4
SAMPLES = 200


def texts(corpus: Path, count: int, longest: int, seed: int) -> Iterator[str]:
    """Runs of 1 to `longest` words, without the full stops at which a text would be cut."""
    words = corpus.read_text(encoding="utf-8").replace(".", "").split()
    chance = random.Random(seed)
    for _ in range(count):
        length = chance.randint(1, longest)
        start = chance.randrange(len(words) - length)
        yield " ".join(words[start : start + length])


def load(server: Served, options: argparse.Namespace) -> dict[str, Any]:
    """Send all requests; memory in MB on the way."""
    sent = list(texts(options.corpus, options.requests, options.longest, seed=1))
    calls = [sent[start : start + TEXTS_PER_CALL] for start in range(0, len(sent), TEXTS_PER_CALL)]
    every = max(1, len(calls) // SAMPLES)
    answered, samples = 0, []
    started = time.perf_counter()
    with dragoman.Client(server.address) as client, ThreadPoolExecutor(CALLS) as pool:

        def call(part: list[str]) -> int:
            return len(client.translate(part, beam_size=options.beam_size, timeout=600))

        for number, count in enumerate(pool.map(call, calls)):
            answered += count
            if number % every == 0:
                samples.append((answered, server.memory()["now"]))
    seconds = time.perf_counter() - started
    half = np.array(samples[len(samples) // 2 :])
    slope = np.polyfit(half[:, 0], half[:, 1], deg=1)[0]
    return {
        "requests": answered,
        "seconds": round(seconds, 1),
        "peak_mb": round(server.memory()["peak"], 1),
        "slope_mb_per_10000": round(float(slope) * 10_000, 3),
        "samples": samples,
    }


def main() -> None:
    """Load both servers, print, write JSON."""
    parser = peer_arguments(__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--longest", type=int, default=60, help="words of a request")
    parser.add_argument("--cache-memory-mib", type=int, help="of the server, per worker; its default without")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe_machine(), "precision": options.precision}
    report |= {"beam_size": options.beam_size, "longest": options.longest}
    report["cache_memory_mib"] = options.cache_memory_mib
    budget = ["--cache-memory-mib", str(options.cache_memory_mib)] if options.cache_memory_mib else []
    with served(options.bundle, "--precision", options.precision, *budget) as server:
        report["dragoman"] = load(server, options)
    with ctranslate2_served(options.checkpoint, options.bundle, options.precision, window_ms=5.0) as server:
        report["ctranslate2"] = load(server, options)
    for name in ("dragoman", "ctranslate2"):
        print(name, *(f"{key} {value}" for key, value in report[name].items() if key != "samples"), sep="\t")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
