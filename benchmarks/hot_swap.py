"""Rollouts under load: calls that fail, replies that are no single version's, memory that does not come back.

Two versions of one model take turns while clients call all the time, without retries. Every reply has to bear
one version and that version's own translation, byte for byte, as it gave it alone before. Reports resident
memory after 5 swaps and after all, while the clients go on, the time that a rollout takes, and the calls that
failed. Growth is that of the median over ten swaps.

    python benchmarks/hot_swap.py --models DIR --name NAME --versions 1 2 --source FILE --out FILE
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

import dragoman
from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub
from dragoman_loadtest.machine import describe_machine
from dragoman_model.evaluation import read_lines
from serving import Served, served

EARLY_SWAPS = 5
WINDOW = 10  # one sample depends on the batches that were just running
GROWTH = 0.05  # what memory may have grown by since, relative
TIMEOUT = 60.0

Expected = dict[str, dict[str, str]]
"""Translations by version and text."""


def alone(options: argparse.Namespace, texts: Sequence[str]) -> Expected:
    """What every version says of the texts where it is the only one."""
    found: Expected = {}
    for version in options.versions:
        with (
            served(options.models / options.name / version, "--precision", options.precision) as server,
            dragoman.Client(server.address) as client,
        ):
            found[version] = {
                text: client.translate(text, beam_size=options.beam_size).text for text in texts
            }
    return found


class Clients:
    """Call without pause and without retries, and count what comes back."""

    def __init__(self, server: Served, expected: Expected, options: argparse.Namespace) -> None:
        self._server, self._expected, self._options = server, expected, options
        self._texts = list(next(iter(expected.values())))
        self.ends: Counter[str] = Counter()
        self.over = False

    async def run(self) -> None:
        """Until `over`."""
        async with grpc.aio.insecure_channel(
            self._server.address, options=[("grpc.enable_retries", 0)]
        ) as channel:
            stub = TranslationServiceStub(channel)
            await asyncio.gather(*(self._client(stub, place) for place in range(self._options.clients)))

    async def _client(self, stub: TranslationServiceStub, place: int) -> None:
        while not self.over:
            text = self._texts[place % len(self._texts)]
            place += self._options.clients + 1
            request = pb.TranslateRequest(
                model=self._options.name, texts=[text], options={"beam_size": self._options.beam_size}
            )
            try:
                reply = await stub.Translate(request, timeout=TIMEOUT)
            except grpc.aio.AioRpcError as error:
                self.ends[f"failed: {error.code().name}"] += 1
                continue
            [translation] = reply.translations
            same = self._expected[reply.version][text] == translation.hypotheses[0].text
            self.ends[f"version {reply.version}" if same else "another version's text"] += 1


async def swap(server: Served, expected: Expected, options: argparse.Namespace) -> dict[str, Any]:
    """Roll the versions out in turns while the clients call."""
    clients = Clients(server, expected, options)
    calling = asyncio.create_task(clients.run())
    seconds: list[float] = []
    memory: list[float] = []
    # The server begins with the newest version.
    others = sorted(options.versions, key=int)
    with dragoman.AdminClient(server.admin_address) as admin:
        for number in range(options.swaps):
            answered = clients.ends.total()
            started = time.perf_counter()
            await asyncio.to_thread(admin.roll_out, options.name, others[number % len(others)])
            seconds.append(time.perf_counter() - started)
            while clients.ends.total() < answered + options.clients:  # each version answers some
                await asyncio.sleep(0.01)
            memory.append(server.memory()["now"])
            print(f"{number + 1}\t{seconds[-1]:.2f} s\t{memory[-1]:.1f} MB", file=sys.stderr, flush=True)
    clients.over = True
    await calling
    first = EARLY_SWAPS - 1
    early, late = (float(np.median(part)) for part in (memory[first : first + WINDOW], memory[-WINDOW:]))
    half = memory[len(memory) // 2 :]
    return {
        "swaps": options.swaps,
        "swap_seconds": {
            "median": round(float(np.median(seconds)), 3),
            "longest": round(max(seconds), 3),
        },
        "calls": clients.ends.total(),
        "ends": dict(clients.ends),
        "memory_mb": {
            f"after {EARLY_SWAPS}": memory[first],
            f"after {options.swaps}": memory[-1],
            f"median of {WINDOW} from {EARLY_SWAPS}": round(early, 1),
            f"median of the last {WINDOW}": round(late, 1),
            "slope_per_swap_over_second_half": round(float(np.polyfit(range(len(half)), half, deg=1)[0]), 4),
            "highest": server.memory()["peak"],
            "after each": memory,
        },
        "growth": round(late / early - 1.0, 4),
    }


def main() -> None:
    """Run, print, write JSON; fail where a call failed, a reply was wrong, or memory has grown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="holds NAME/VERSION/")
    parser.add_argument("--name", required=True)
    parser.add_argument("--versions", nargs=2, required=True, help="that translate differently")
    parser.add_argument("--source", type=Path, required=True, help="texts, one a line")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--beam-size", type=int, default=1)
    options = parser.parse_args()
    if options.swaps < 2 * WINDOW:
        parser.error(f"--swaps must be at least {2 * WINDOW}")
    expected = alone(options, list(dict.fromkeys(read_lines(options.source)))[: options.texts])
    first, second = expected.values()
    differing = sum(first[text] != second[text] for text in first)
    report: dict[str, Any] = {"machine": describe_machine(), "precision": options.precision}
    report |= {"beam_size": options.beam_size, "clients": options.clients}
    report |= {"texts": len(first), "texts_that_tell_the_versions_apart": differing}
    with served(options.models, "--precision", options.precision, "--admin-port", "0") as server:
        report |= asyncio.run(swap(server, expected, options))
        counted = server.metrics()
    translate = 'method="/dragoman.v1.TranslationService/Translate"'
    report["calls_counted_by_the_server"] = {
        name.partition('code="')[2].partition('"')[0]: int(count)
        for name, count in counted.items()
        if name.startswith("dragoman_calls_total") and translate in name
    }
    wrong = sum(count for end, count in report["ends"].items() if not end.startswith("version "))
    report["failures"] = wrong
    shown = {key: value for key, value in report.items() if key not in ("machine", "memory_mb")}
    shown["memory_mb"] = {key: value for key, value in report["memory_mb"].items() if key != "after each"}
    print(json.dumps(shown, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(0 if wrong == 0 and report["growth"] <= GROWTH else 1)


if __name__ == "__main__":
    main()
