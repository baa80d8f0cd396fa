"""Where a decode step's time goes: by operator, and against the number of rows and their lengths.

Every row has a source of `--source-tokens` and has decoded `--target-tokens`. Times are medians, on one
thread; those of the operators come from a second run under ONNX Runtime's profiler, which makes small ones
look larger.

    python benchmarks/step_profile.py --bundle DIR --precision int8 [--rows 1 16 64]
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dragoman_server.bundle import Bundle
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import LoadedModel, session_options

STEPS = 30


def load(bundle: Bundle, precision: str, profile: Path | None) -> LoadedModel:
    """The graphs on one thread; the decode step profiled where `profile` names a folder."""
    import onnxruntime  # not before the server's package, which switches its telemetry off

    graphs = bundle.manifest.precisions[precision]
    sessions = []
    for file in (graphs.encoder, graphs.decode_step):
        options = session_options(threads=1)
        if profile is not None and file == graphs.decode_step:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "step")
        sessions.append(
            onnxruntime.InferenceSession(bundle.read(file), options, providers=["CPUExecutionProvider"])
        )
    return LoadedModel(bundle.manifest, graphs.state, *sessions)


def steps(model: LoadedModel, rows: int, source_tokens: int, target_tokens: int, top_k: int) -> list[float]:
    """Seconds of every step at that length."""
    runner = OnnxRunner(model, rows)
    runner.encode([[4] * source_tokens] * rows, [[row] for row in range(rows)])
    tokens, lengths = np.full(rows, 4), np.full(rows, target_tokens)
    seconds = []
    for _ in range(STEPS + 3):
        started = time.perf_counter()
        runner.step(tokens, lengths, top_k)
        seconds.append(time.perf_counter() - started)
    return seconds[3:]


def by_operator(trace: Path) -> dict[str, dict[str, float]]:
    """Microseconds and nodes of a step, by operator."""
    total: collections.Counter[str] = collections.Counter()
    nodes: collections.Counter[str] = collections.Counter()
    for event in json.loads(trace.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            total[event["args"]["op_name"]] += event["dur"]
            nodes[event["args"]["op_name"]] += 1
    runs = STEPS + 3
    return {
        name: {"microseconds": round(time / runs, 1), "nodes": round(nodes[name] / runs)}
        for name, time in total.most_common()
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--source-tokens", type=int, default=24)
    parser.add_argument("--target-tokens", type=int, default=20)
    parser.add_argument("--top-k", type=int, default=2)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    lengths = (options.source_tokens, options.target_tokens, options.top_k)
    report: dict[str, Any] = {}
    plain = load(bundle, options.precision, None)
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            profiled = load(bundle, options.precision, Path(folder))
            milliseconds = statistics.median(steps(plain, rows, *lengths)) * 1e3
            steps(profiled, rows, *lengths)
            operators = by_operator(Path(profiled.decode_step.end_profiling()))
        report[f"{rows} rows"] = {"milliseconds": round(milliseconds, 3), "operators": operators}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
