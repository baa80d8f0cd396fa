"""Dragoman beside CTranslate2 and Transformers: same weights, same cores, in turns.

Two workloads. *offline*: a file translated as fast as possible, output tokens a second. *alone*: one sentence
at a time, greedy, the time of each, in blocks. Every system runs with the settings that suit it best, found
beforehand; translations are compared first, so that all do the same work. Figures are medians of interleaved
rounds.

    python benchmarks/compare.py --checkpoint DIR --bundle DIR --source FILE --out DIR
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

import ctranslate2_convert
import systems
from dragoman_loadtest.machine import describe_machine
from dragoman_model.checkpoint import Checkpoint, load_checkpoint
from dragoman_model.evaluation import read_lines
from dragoman_server.bundle import Bundle
from dragoman_server.engine.messages import output_limit
from dragoman_server.engine.threads import choose_threads
from dragoman_server.special_ids import EOS_ID
from systems import Output, Sentence, System, Translate

mpl.use("agg")
from matplotlib import pyplot as plt

REFERENCE = "CTranslate2"
BATCH_TOKENS = (512, 1024, 2048, 4096)
BATCH_SIZES = (32, 64)
ALONE_BLOCK, PAUSE = 20, 0.3
_COLOURS = {
    "Dragoman, engine": "#0b6e4f",
    "Dragoman, gRPC": "#6bb392",
    "CTranslate2": "#c8553d",
    "Transformers": "#8d99ae",
}


def main() -> None:
    """Measure, print, write `compare.json`, `compare.png`, and the sentences that were compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True, help="exported from it")
    parser.add_argument("--source", type=Path, required=True, help="text, one sentence a line")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--count", type=int, default=2000, help="sentences at most")
    parser.add_argument(
        "--beam", type=int, nargs="*", default=[1, 4], help="beam sizes of the offline workload"
    )
    parser.add_argument("--alone", type=int, default=200, help="sentences one at a time; 0 for none")
    parser.add_argument("--rows", type=int, default=128, help="slots per worker")
    parser.add_argument("--precision", nargs="*", help="of the bundle's; all of them by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transformers", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    checkpoint, bundle = load_checkpoint(options.checkpoint), Bundle.open(options.bundle)
    precisions = options.precision or sorted(bundle.manifest.precisions)
    with tempfile.TemporaryDirectory() as folder:
        peer = Path(folder) / "ctranslate2"
        ctranslate2_convert.convert(checkpoint, peer)
        given = _sentences(checkpoint, options.source, options.count)
        sentences = _ended(peer, given)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "sentences.txt").write_text("".join(f"{sentence.text}\n" for sentence in sentences))
        report: dict[str, Any] = {
            "machine": describe_machine(),
            "cores": choose_threads(),
            "sentences": len(sentences),
            "left_out": len(given) - len(sentences),
            "source_tokens": sum(len(sentence.ids) for sentence in sentences),
            "offline": [],
            "alone": [],
        }
        for precision in precisions:
            for beam_size in options.beam:
                with contextlib.ExitStack() as stack:
                    contestants = _offline_systems(
                        stack, checkpoint, bundle, peer, precision, options.rows, options.transformers
                    )
                    report["offline"] += _offline(
                        contestants, checkpoint, sentences, beam_size, options.rounds
                    )
            if options.alone:
                with contextlib.ExitStack() as stack:
                    contestants = _alone_systems(stack, bundle, peer, precision)
                    report["alone"] += _alone(contestants, sentences[: options.alone])
    (options.out / "compare.json").write_text(json.dumps(report, indent=2) + "\n")
    _draw(report, options.out / "compare.png")


def _sentences(checkpoint: Checkpoint, source: Path, count: int) -> list[Sentence]:
    texts = read_lines(source)[:count]
    encoded = checkpoint.source_tokenizer.encode_all(texts)
    return [Sentence(text, [*ids, EOS_ID]) for text, ids in zip(texts, encoded, strict=True)]


def _ended(peer: Path, sentences: list[Sentence]) -> list[Sentence]:
    """Those whose translations end by themselves: the systems cut the others at bounds of their own."""
    system = systems.ctranslate2(peer, "fp32", [(choose_threads(), 1)], [max(BATCH_TOKENS)])
    [translate] = system.settings.values()
    outputs = translate(sentences, 1)
    return [
        sentence
        for sentence, output in zip(sentences, outputs, strict=True)
        if output.tokens < output_limit(len(sentence.ids))
    ]


def _offline_systems(
    stack: contextlib.ExitStack,
    checkpoint: Checkpoint,
    bundle: Bundle,
    peer: Path,
    precision: str,
    rows: int,
    with_transformers: bool,
) -> list[System]:
    cores = choose_threads()
    contestants = [
        stack.enter_context(systems.engine(bundle, precision, [(cores, 1)], rows)),
        stack.enter_context(systems.endpoint(bundle, precision, rows)),
        systems.ctranslate2(peer, precision, systems.splits_of_cores(), BATCH_TOKENS),
    ]
    if precision == "fp32" and with_transformers:
        contestants.append(systems.transformers(checkpoint, BATCH_SIZES))
    return contestants


def _alone_systems(stack: contextlib.ExitStack, bundle: Bundle, peer: Path, precision: str) -> list[System]:
    lone = sorted({(1, 1), (1, choose_threads())})
    return [
        stack.enter_context(systems.engine(bundle, precision, lone, rows=8)),
        systems.ctranslate2(peer, precision, lone, [1024]),
    ]


def _offline(
    contestants: Sequence[System],
    checkpoint: Checkpoint,
    sentences: Sequence[Sentence],
    beam_size: int,
    rounds: int,
) -> list[dict[str, Any]]:
    best = {system.name: _best_setting(system, sentences, beam_size) for system in contestants}
    texts = {
        name: _texts(checkpoint, translate(sentences, beam_size)) for name, (_, translate) in best.items()
    }
    speeds: dict[str, list[float]] = {system.name: [] for system in contestants}
    for _ in range(rounds):
        for name, (_, translate) in best.items():
            speeds[name].append(_tokens_per_second(translate, sentences, beam_size))
    rows = []
    for system in contestants:
        ratios = [ours / theirs for ours, theirs in zip(speeds[system.name], speeds[REFERENCE], strict=True)]
        same = np.mean([a == b for a, b in zip(texts[system.name], texts[REFERENCE], strict=True)])
        rows.append(
            {
                "system": system.name,
                "precision": system.precision,
                "beam_size": beam_size,
                "settings": best[system.name][0],
                "tokens_per_second": round(statistics.median(speeds[system.name])),
                "ratio": round(statistics.median(ratios), 3),
                "same_as_reference": round(float(same), 4),
            }
        )
        print("offline", *rows[-1].values(), sep="\t", flush=True)
    return rows


def _best_setting(system: System, sentences: Sequence[Sentence], beam_size: int) -> tuple[str, Translate]:
    """The fastest setting: on all sentences, as it is measured later, and the better of two runs."""

    def speed(name: str) -> float:
        return max(_tokens_per_second(system.settings[name], sentences, beam_size) for _ in range(2))

    name = max(system.settings, key=speed) if len(system.settings) > 1 else next(iter(system.settings))
    return name, system.settings[name]


def _tokens_per_second(translate: Translate, sentences: Sequence[Sentence], beam_size: int) -> float:
    started = time.perf_counter()
    outputs = translate(sentences, beam_size)
    return sum(output.tokens for output in outputs) / (time.perf_counter() - started)


def _texts(checkpoint: Checkpoint, outputs: Sequence[Output]) -> list[str]:
    decode = checkpoint.target_tokenizer.decode
    return [output.text or decode(output.ids) for output in outputs]


def _alone(contestants: Sequence[System], sentences: Sequence[Sentence]) -> list[dict[str, Any]]:
    """Greedy; blocks of sentences, of which every system translates one after the other."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for start in range(0, len(sentences), ALONE_BLOCK):
        block = sentences[start : start + ALONE_BLOCK]
        for system in contestants:
            for setting, translate in system.settings.items():
                time.sleep(PAUSE)  # the threads of the one before go on spinning for a while
                for sentence in block[:3]:
                    translate([sentence], 1)
                times = seconds.setdefault((system.name, setting), [])
                for sentence in block:
                    started = time.perf_counter()
                    translate([sentence], 1)
                    times.append(time.perf_counter() - started)
    rows = []
    for system in contestants:
        # The setting with the lower median.
        setting = min(system.settings, key=lambda name: statistics.median(seconds[system.name, name]))
        times = np.array(seconds[system.name, setting]) * 1e3
        rows.append(
            {
                "system": system.name,
                "precision": system.precision,
                "settings": setting,
                "median_ms": round(float(np.median(times)), 3),
                "p99_ms": round(float(np.quantile(times, 0.99)), 3),
            }
        )
    reference = next(row for row in rows if row["system"] == REFERENCE)
    for row in rows:
        row["median_ratio"] = round(row["median_ms"] / reference["median_ms"], 3)
        row["p99_ratio"] = round(row["p99_ms"] / reference["p99_ms"], 3)
        print("alone", *row.values(), sep="\t", flush=True)
    return rows


def _draw(report: dict[str, Any], file: Path) -> None:
    """Bars of tokens a second, one group for each precision and beam size."""
    groups = sorted({(row["precision"], row["beam_size"]) for row in report["offline"]})
    if not groups:
        return
    figure, axes = plt.subplots(1, len(groups), figsize=(3.2 * len(groups), 3.6), layout="constrained")
    for axis, (precision, beam_size) in zip(np.atleast_1d(axes), groups, strict=True):
        rows = [
            row
            for row in report["offline"]
            if row["precision"] == precision and row["beam_size"] == beam_size
        ]
        names = [row["system"] for row in rows]
        bars = axis.bar(
            names, [row["tokens_per_second"] for row in rows], color=[_COLOURS[name] for name in names]
        )
        axis.bar_label(bars, [f"{row['ratio']:.2f}" for row in rows], padding=2)
        axis.set_title(f"{precision}, {'greedy' if beam_size == 1 else f'beam {beam_size}'}")
        axis.tick_params(axis="x", labelrotation=35)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.12)
    np.atleast_1d(axes)[0].set_ylabel("output tokens per second")
    figure.suptitle(f"{report['sentences']} sentences, {report['cores']} cores; figures: times {REFERENCE}")
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
