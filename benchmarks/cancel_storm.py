"""Nothing is left of requests that were cancelled or ran out of time.

Sends requests of which a third are cancelled, or given too little time, at a random moment of their life;
then asks the server's own metrics what is still held.

    python benchmarks/cancel_storm.py --bundle DIR --source FILE [--count 1000] [--seed 0]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import dragoman
from dragoman_model.evaluation import read_lines
from serving import Served, served

CONCURRENCY = 100
SETTLE_SECONDS = 5.0  # the last cancellations may still be on their way when the storm is over
HELD = ("dragoman_queue_depth", "dragoman_slots_in_use", "dragoman_calls_in_progress", "dragoman_tasks")


def held_by(server: Served) -> dict[str, float]:
    """What the server's metrics say it holds."""
    samples = server.metrics()
    held = {name: value for name, value in samples.items() if name.partition("{")[0] in HELD}
    assert {name.partition("{")[0] for name in held} == set(HELD)
    return held


async def storm(address: str, texts: list[str], seed: int) -> Counter[str]:
    """How the requests ended."""
    draw = random.Random(seed)
    places = asyncio.Semaphore(CONCURRENCY)
    ends: Counter[str] = Counter()
    async with dragoman.AsyncClient(address, timeout=120) as client:

        async def one(text: str, fate: float, moment: float, beam_size: int) -> None:
            async with places:
                timeout = moment if fate < 1 / 6 else None
                call = asyncio.ensure_future(client.translate(text, beam_size=beam_size, timeout=timeout))
                if 1 / 6 <= fate < 1 / 3:
                    asyncio.get_running_loop().call_later(moment, call.cancel)
                try:
                    await call
                    ends["answered"] += 1
                except asyncio.CancelledError:
                    ends["cancelled"] += 1
                except dragoman.DeadlineExceeded:
                    ends["out of time"] += 1

        await asyncio.gather(
            *(one(text, draw.random(), draw.uniform(0.001, 0.3), draw.choice([1, 2, 4, 5])) for text in texts)
        )
    return ends


def main() -> None:
    """Run, print, and fail where anything is left or the answer has changed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = read_lines(options.source)
    texts = [lines[i % len(lines)] for i in range(options.count)]
    with served(options.bundle) as server:
        with dragoman.Client(server.address) as client:
            before = client.translate(texts[0])
            idle = held_by(server)
            ends = asyncio.run(storm(server.address, texts, options.seed))
            after = client.translate(texts[0])
        end = time.monotonic() + SETTLE_SECONDS
        while (held := held_by(server)) != idle and time.monotonic() < end:
            time.sleep(0.05)
    same = before.hypotheses == after.hypotheses
    print(
        json.dumps(
            {
                "requests": options.count,
                "ended": ends,
                "held": held,
                "held_when_idle": idle,
                "same_answer": same,
            },
            indent=2,
        )
    )
    sys.exit(0 if same and held == idle else 1)


if __name__ == "__main__":
    main()
