"""How a decode step's cost grows with rows and length, a server's with load, and how near the floor it is.

Steps are timed on one core, medians; the floor is the time in which this core could read the weights, keys
and values from memory, or compute the products, whichever takes longer. The server is loaded in the open loop
at shares of `--peak`, its highest rate.

    python benchmarks/scaling.py --bundle DIR --corpus FILE --peak RATE --out DIR [--precision int8]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from dragoman_loadtest.machine import describe_machine
from dragoman_server.bundle import Bundle
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import LoadedModel, load_model
from dragoman_server.engine.runner import Extent
from floor import Floor, measure
from serving import DRAGOMAN, served

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

ROWS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (8, 16, 32, 64, 128, 256)
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.2)
USUAL_ROWS, USUAL_LENGTH = 32, 24
LONG_LENGTH, SHORT_LENGTH = 300, 10
STEPS, WARM = 30, 3
_COLOUR, _FLOOR_COLOUR = "#0b6e4f", "#8d99ae"


def step_seconds(runner: OnnxRunner, lengths: np.ndarray) -> list[float]:
    """Times of steps of `len(lengths)` rows, row `i` having a source and a history of `lengths[i]` tokens."""
    rows, tokens = len(lengths), np.full(len(lengths), 4)
    runner.reserve(Extent(rows, int(lengths.max()) + 1, int(lengths.max())))
    for row, length in enumerate(lengths):
        runner.encode([[4] * int(length)], [[row]])
    seconds = []
    for _ in range(STEPS + WARM):
        started = time.perf_counter()
        runner.step(tokens, lengths, top_k=2)
        seconds.append(time.perf_counter() - started)
    return seconds[WARM:]


def step(model: LoadedModel, floor: Floor, rows: int, length: int) -> dict[str, float]:
    """A step of `rows` rows of that length."""
    runner = OnnxRunner(model, rows)
    seconds = statistics.median(step_seconds(runner, np.full(rows, length)))
    least = floor.step_seconds(model, rows, length, length)
    slab = runner._slab
    return {
        "rows": rows,
        "length": length,
        "milliseconds": round(seconds * 1e3, 3),
        "rows_per_second": round(rows / seconds),
        "floor_milliseconds": round(least * 1e3, 3),
        "times_the_floor": round(seconds / least, 2),
        "state_megabytes": round(slab.bytes(slab.extent) / 1e6, 2),
    }


def long_and_short(model: LoadedModel) -> dict[str, float]:
    """What one long row adds to the steps of short ones, beside what its own step takes; in turns."""
    short = np.full(USUAL_ROWS - 1, SHORT_LENGTH)
    runners = {"short": OnnxRunner(model, USUAL_ROWS), "mixed": OnnxRunner(model, USUAL_ROWS)}
    lengths = {"short": short, "mixed": np.append(short, LONG_LENGTH)}
    alone = statistics.median(step_seconds(OnnxRunner(model, 1), np.array([LONG_LENGTH])))
    seconds: dict[str, list[float]] = {"short": [], "mixed": []}
    for _ in range(5):
        for name, runner in runners.items():
            seconds[name] += step_seconds(runner, lengths[name])
    without, beside = (statistics.median(seconds[name]) for name in ("short", "mixed"))
    return {
        "short_rows": USUAL_ROWS - 1,
        "short_milliseconds": round(without * 1e3, 3),
        "with_the_long_row_milliseconds": round(beside * 1e3, 3),
        "long_row_alone_milliseconds": round(alone * 1e3, 3),
        "slower_by": round(beside / without - 1, 3),
    }


def under_load(options: argparse.Namespace) -> list[dict[str, float]]:
    """A server at shares of its highest rate."""
    points = []
    with served(options.bundle, "--precision", options.precision) as server:
        for share in SHARES:
            rate = share * options.peak
            words = [*DRAGOMAN, "loadtest", "--endpoint", server.address, "--corpus", str(options.corpus)]
            words += ["--metrics", str(server.metrics_address), "--rate", f"{rate:.6g}", "--json"]
            words += ["--duration", options.duration, "--warm-up", "3s", "--no-check"]
            words += ["--beam-size", str(options.beam_size), "--out", str(options.out / f"load-{share:g}")]
            run = json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False).stdout)
            figures = run["figures"]
            latency = figures["times"]["latency"]
            points.append(
                {
                    "share": share,
                    "offered_per_second": round(rate, 2),
                    "answered_per_second": round(figures["rates"]["answered"], 2),
                    "p50_ms": round(latency["p50"] * 1e3, 1),
                    "p97_ms": round(latency["p97"] * 1e3, 1),
                    "resident_mb": round(server.memory()["now"], 1),
                    "valid": figures["self_check"]["valid"],
                }
            )
            print("load", *points[-1].values(), sep="\t", flush=True)
    return points


def main() -> None:
    """Measure, print, write `scaling.json` and `scaling.png`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument(
        "--peak", type=float, required=True, help="the server's highest rate, as online.py finds"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--beam-size", type=int, default=1)
    parser.add_argument("--duration", default="10s", help="of each load")
    options = parser.parse_args()
    model = load_model(Bundle.open(options.bundle), options.precision)
    floor = measure(options.precision)
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "precision": options.precision,
        "bytes_per_second": floor.bytes_per_second,
        "operations_per_second": floor.operations_per_second,
        "by_rows": [step(model, floor, rows, USUAL_LENGTH) for rows in ROWS],
        "by_length": [step(model, floor, USUAL_ROWS, length) for length in LENGTHS],
        "long_and_short": long_and_short(model),
    }
    for name in ("by_rows", "by_length"):
        for point in report[name]:
            print(name, *point.values(), sep="\t")
    print("long_and_short", *report["long_and_short"].values(), sep="\t")
    report["by_load"] = under_load(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scaling.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(report, options.out / "scaling.png")


def draw(report: dict[str, Any], file: Path) -> None:
    """Three pictures of time, and beneath them three of throughput and memory."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for column, (name, key, label) in enumerate(
        (("by_rows", "rows", "rows"), ("by_length", "length", "tokens of source and of output so far"))
    ):
        points = report[name]
        x = [point[key] for point in points]
        time_axis, memory_axis = axes[0, column], axes[1, column]
        time_axis.plot(x, [point["milliseconds"] for point in points], "o-", color=_COLOUR, label="a step")
        time_axis.plot(
            x, [point["floor_milliseconds"] for point in points], "--", color=_FLOOR_COLOUR, label="the floor"
        )
        time_axis.set(xscale="log", yscale="log", ylabel="milliseconds")
        time_axis.legend(frameon=False)
        memory_axis.plot(x, [point["rows_per_second"] for point in points], "o-", color=_COLOUR)
        memory_axis.set(xscale="log", xlabel=label, ylabel="tokens per second, all rows", ylim=(0, None))
        beside = memory_axis.twinx()
        beside.plot(x, [point["state_megabytes"] for point in points], "s:", color=_FLOOR_COLOUR)
        beside.set(ylabel="keys and values, MB (dotted)", ylim=(0, None))
        for axis in (time_axis, memory_axis):
            axis.set_xticks(x, map(str, x))
            axis.minorticks_off()
    axes[0, 0].set_title(f"{USUAL_LENGTH} tokens")
    axes[0, 1].set_title(f"{USUAL_ROWS} rows")
    loads = report["by_load"]
    x = [point["offered_per_second"] for point in loads]
    for key, style in (("p50_ms", "o-"), ("p97_ms", "o--")):
        axes[0, 2].plot(
            x, [point[key] for point in loads], style, color=_COLOUR, label=key.removesuffix("_ms")
        )
    axes[0, 2].set(yscale="log", ylabel="latency, milliseconds", title="one server under load")
    axes[0, 2].legend(frameon=False)
    axes[1, 2].plot(x, [point["answered_per_second"] for point in loads], "o-", color=_COLOUR)
    axes[1, 2].set(xlabel="sentences offered per second", ylabel="answered per second", ylim=(0, None))
    beside = axes[1, 2].twinx()
    beside.plot(x, [point["resident_mb"] for point in loads], "s:", color=_FLOOR_COLOUR)
    beside.set(ylabel="resident memory, MB (dotted)", ylim=(0, None))
    for axis in axes[0]:
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    for axis in axes.flat:
        axis.spines["top"].set_visible(False)
        axis.grid(alpha=0.25)
    figure.suptitle(f"{report['precision']}, one core a step")
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
