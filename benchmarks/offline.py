"""A file translated as fast as possible: our engine beside CTranslate2, same weights, same cores, in turns.

Before anything is timed, translations are compared, so that all do the same work.

    python benchmarks/offline.py --checkpoint DIR --bundle DIR --source FILE [--count 1000] [--beam 1 4]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctranslate2_peer import Peer, convert
from dragoman_model.checkpoint import load_checkpoint
from dragoman_model.evaluation import read_lines
from dragoman_server.bundle import Bundle
from dragoman_server.engine import DecodingOptions, Engine, Event, Finished, Request
from dragoman_server.engine.onnx_runner import OnnxRunner, load_model
from dragoman_server.engine.threads import choose_threads
from dragoman_server.tokenizer import BOS_ID, EOS_ID

Ids = list[int]
System = Callable[[Sequence[Ids], int], list[Ids]]
PEER_BATCH_TOKENS = (512, 1024, 2048, 4096)  # the best of these stands in the table


def our_engine(bundle: Bundle, precision: str, max_rows: int) -> System:
    """All sources at once into an engine with a worker per core."""
    model = load_model(bundle, precision)
    runners = [OnnxRunner(model, max_rows) for _ in range(choose_threads())]
    engine = Engine(runners, max_queue=1_000_000, bos_id=BOS_ID, eos_id=EOS_ID)

    def translate(sources: Sequence[Ids], beam_size: int) -> list[Ids]:
        results: list[Ids] = [[] for _ in sources]
        left, done = len(sources), threading.Event()
        lock = threading.Lock()

        def notifier(index: int) -> Callable[[Event], None]:
            def notify(event: Event) -> None:
                nonlocal left
                assert isinstance(event, Finished), event
                results[index] = list(event.hypotheses[0].tokens)
                with lock:
                    left -= 1
                    if not left:
                        done.set()

            return notify

        options = DecodingOptions(beam_size=beam_size)
        for index, source in enumerate(sources):
            engine.submit(Request(tuple(source), options, notifier(index)))
        done.wait()
        return results

    return translate


def peer(folder: Path, compute_type: str, batch_tokens: int) -> System:
    """CTranslate2 with a worker per core."""
    translator = Peer(folder, compute_type, workers=choose_threads(), threads=1)
    return lambda sources, beam_size: translator.translate(sources, beam_size, batch_tokens)


def tokens_per_second(system: System, sources: Sequence[Ids], beam_size: int) -> float:
    """Output tokens, the end symbols included, over the time for all sources."""
    started = time.perf_counter()
    results = system(sources, beam_size)
    return sum(len(ids) + 1 for ids in results) / (time.perf_counter() - started)


def agreement(a: list[Ids], b: list[Ids]) -> float:
    """Share of sentences that are the same, token for token."""
    return sum(one == other for one, other in zip(a, b, strict=True)) / len(a)


def measured(
    ours: System, peers: dict[int, System], sources: list[Ids], beam_size: int, rounds: int
) -> dict[str, Any]:
    """Medians of interleaved rounds; the peer at the batch size that suits it best."""
    same = agreement(ours(sources, beam_size), next(iter(peers.values()))(sources, beam_size))
    best = max(peers, key=lambda size: tokens_per_second(peers[size], sources, beam_size))
    mine, theirs = [], []
    for _ in range(rounds):
        mine.append(tokens_per_second(ours, sources, beam_size))
        theirs.append(tokens_per_second(peers[best], sources, beam_size))
    return {
        "dragoman_tokens_per_second": round(statistics.median(mine)),
        "ctranslate2_tokens_per_second": round(statistics.median(theirs)),
        "ratio": round(statistics.median(a / b for a, b in zip(mine, theirs, strict=True)), 2),
        "ctranslate2_batch_tokens": best,
        "same_translations": round(same, 4),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True, help="exported from it")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--beam", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rows", type=int, default=64, help="slots per worker")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    checkpoint, bundle = load_checkpoint(options.checkpoint), Bundle.open(options.bundle)
    texts = read_lines(options.source)[: options.count]
    sources = [[*ids, EOS_ID] for ids in checkpoint.source_tokenizer.encode_all(texts)]
    report: dict[str, Any] = {"sentences": len(sources), "cores": choose_threads(), "rows": options.rows}
    with tempfile.TemporaryDirectory() as folder:
        convert(checkpoint, Path(folder) / "ct2")
        for precision, compute_type in (("fp32", "float32"), ("int8", "int8")):
            if precision not in bundle.manifest.precisions:
                continue
            ours = our_engine(bundle, precision, options.rows)
            peers = {size: peer(Path(folder) / "ct2", compute_type, size) for size in PEER_BATCH_TOKENS}
            for beam_size in options.beam:
                found = measured(ours, peers, sources, beam_size, options.rounds)
                report[f"{precision}, beam {beam_size}"] = found
                print(precision, beam_size, found, flush=True)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
