"""The highest Poisson rate over gRPC within a bound on latency: Dragoman, and CTranslate2 behind a batcher.

Both stand behind the same service and are searched by `dragoman loadtest --find-peak`. CTranslate2's batcher
gathers for each of the given windows; the best one counts.

    python benchmarks/online.py --checkpoint DIR --bundle DIR --corpus FILE --precision int8 --out FILE
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from dragoman_loadtest.machine import describe_machine
from serving import DRAGOMAN, Served, ctranslate2_served, peer_arguments, served


def peak(server: Served, options: argparse.Namespace) -> dict[str, Any]:
    """What the search found."""
    out = options.out.parent / "loadtests"
    words = [*DRAGOMAN, "loadtest", "--endpoint", server.address, "--corpus", str(options.corpus)]
    words += ["--find-peak", "--slo", options.slo, "--beam-size", str(options.beam_size), "--no-check"]
    words += ["--rate", str(options.rate), "--duration", options.duration, "--warm-up", "5s", "--json"]
    result = subprocess.run([*words, "--out", str(out)], stdout=subprocess.PIPE, text=True, check=False)
    if not result.stdout:
        sys.exit("the load test did not run")
    found: dict[str, Any] = json.loads(result.stdout)["peak"]
    return {"rate": found["rate"], "trials": [[t["stage"], t["rate"], t["met"]] for t in found["trials"]]}


def main() -> None:
    """Search, print, write JSON."""
    parser = peer_arguments(__doc__.splitlines()[0])
    parser.add_argument("--slo", default="p97<250ms")
    parser.add_argument("--rate", type=float, default=20.0, help="where the searches begin")
    parser.add_argument("--duration", default="20s", help="of a trial")
    parser.add_argument("--window-ms", type=float, nargs="+", default=[0.0, 5.0, 20.0])
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe_machine(), "precision": options.precision}
    report |= {"beam_size": options.beam_size, "slo": options.slo, "ctranslate2": {}}
    with served(options.bundle, "--precision", options.precision) as server:
        report["dragoman"] = peak(server, options)
    print("Dragoman", report["dragoman"]["rate"], sep="\t", flush=True)
    for window in options.window_ms:
        with ctranslate2_served(options.checkpoint, options.bundle, options.precision, window) as server:
            report["ctranslate2"][str(window)] = peak(server, options)
        print(f"CTranslate2, {window:g} ms", report["ctranslate2"][str(window)]["rate"], sep="\t", flush=True)
    best = max(found["rate"] or 0.0 for found in report["ctranslate2"].values())
    report["ratio"] = (
        round(report["dragoman"]["rate"] / best, 2) if best and report["dragoman"]["rate"] else None
    )
    print("ratio", report["ratio"], sep="\t", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
