"""The search of `dragoman loadtest --find-peak` beside that of MLPerf's LoadGen, in turns on one server.

A machine shared with others changes its speed within minutes: the searches take turns, and medians count.

    python benchmarks/peak_referee.py --bundle DIR --corpus FILE --out DIR [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from dragoman_loadtest.machine import describe_machine
from serving import DRAGOMAN, Served, served


def peak(server: Served, options: argparse.Namespace, engine: str, number: int) -> float:
    """The highest rate that a search finds."""
    words = [*DRAGOMAN, "loadtest", "--endpoint", server.address, "--corpus", str(options.corpus)]
    words += [
        "--find-peak",
        "--slo",
        options.slo,
        "--rate",
        str(options.rate),
        "--duration",
        options.duration,
    ]
    words += ["--warm-up", "5s", "--no-check", "--seed", str(number), "--engine", engine, "--json"]
    words += ["--out", str(options.out / f"{engine}-{number}")]
    result = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if not result.stdout:
        sys.exit("the load test did not run")
    found: dict[str, Any] = json.loads(result.stdout)
    rate = found["loadgen"]["peak_per_second"] if engine == "loadgen" else found["peak"]["rate"]
    print(engine, number, rate, sep="\t", flush=True)
    return float(rate)


def main() -> None:
    """Search, print, write `peaks.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--slo", default="p97<250ms")
    parser.add_argument("--rate", type=float, default=150.0, help="where the searches begin")
    parser.add_argument("--duration", default="20s", help="of a trial")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"dragoman": [], "loadgen": []}
    with served(options.bundle, "--precision", options.precision) as server:
        for number in range(1, options.rounds + 1):
            for engine, found in rates.items():
                found.append(peak(server, options, engine, number))
    ratio = statistics.median(rates["dragoman"]) / statistics.median(rates["loadgen"])
    print("medians", *(statistics.median(found) for found in rates.values()), f"ratio {ratio:.3f}", sep="\t")
    report = {"machine": describe_machine(), "slo": options.slo, "rates": rates, "ratio": round(ratio, 3)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peaks.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
