"""CTranslate2 behind this project's own service, with the dynamic batcher that it is usually given.

Requests are gathered for a time window, or until a batch is full; a batch is decoded as a whole, and what
comes meanwhile waits for the next. Prints a JSON line with its address when it is ready; SIGTERM ends it.
Neither torch nor ONNX Runtime is in this process.

    python benchmarks/ctranslate2_convert.py --checkpoint DIR --out MODEL
    python benchmarks/ctranslate2_server.py --model MODEL --bundle DIR --precision int8 --window-ms 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import queue
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from ctranslate2_peer import Peer
from dragoman_server.bundle import Bundle
from dragoman_server.config import CallLimits
from dragoman_server.engine import Failed, Finished, FinishReason, Hypothesis, Request, Timing
from dragoman_server.engine.threads import choose_threads
from dragoman_server.models import ModelDescription, ModelTable, ServedModel
from dragoman_server.service.listening import Listener
from dragoman_server.service.server import GrpcServer
from dragoman_server.special_ids import EOS_ID
from dragoman_server.tokenizer import Tokenizer
from dragoman_server.translator import Translator

BATCH_TOKENS = 4096


class WindowBatcher:
    """Takes segments as the engine does; hands batches to whichever CTranslate2 worker is free.

    Args:
        peer: Has `workers` workers.
        workers: Batches in progress at most.
        window: Seconds to gather for after the first request of a batch.
        max_batch: Requests of a batch at most.
    """

    def __init__(self, peer: Peer, workers: int, window: float, max_batch: int) -> None:
        self._peer = peer
        self._window = window
        self._max_batch = max_batch
        self._waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._free = threading.Semaphore(workers)
        self._pool = ThreadPoolExecutor(workers)
        threading.Thread(target=self._gather_for_ever, daemon=True).start()

    def submit(self, request: Request) -> None:
        request.arrived = time.monotonic()
        self._waiting.put(request)

    def cancel(self, request: Request) -> None:
        request.cancelled = True  # a batch that runs cannot be left

    def _gather_for_ever(self) -> None:
        while True:
            first = self._waiting.get()
            self._free.acquire()  # what comes while all workers are busy joins the batch
            end = time.monotonic() + self._window
            batch = [first]
            while len(batch) < self._max_batch:
                try:
                    batch.append(self._waiting.get(timeout=max(0.0, end - time.monotonic())))
                except queue.Empty:
                    break
            self._pool.submit(self._translate, batch)

    def _translate(self, batch: list[Request]) -> None:
        started = time.monotonic()
        try:
            by_beam: dict[int, list[Request]] = {}
            for request in batch:
                if not request.cancelled:
                    by_beam.setdefault(request.options.beam_size, []).append(request)
            for beam_size, requests in by_beam.items():
                results = self._peer.translate(
                    [request.source for request in requests], beam_size, BATCH_TOKENS
                )
                for request, ids in zip(requests, results, strict=True):
                    hypothesis = Hypothesis(tuple(ids), 0.0, 0.0, FinishReason.STOP)
                    timing = Timing(started - request.arrived, 0.0, time.monotonic() - started)
                    request.notify(Finished((hypothesis,), timing))
        except Exception as error:
            for request in batch:
                request.notify(Failed(error))
        finally:
            self._free.release()


def served_model(bundle: Bundle, precision: str, batcher: WindowBatcher) -> ServedModel:
    """The bundle's texts, tokenized by its tokenizers, through `batcher`."""
    manifest = bundle.manifest
    description = ModelDescription(
        name="ctranslate2",
        version=manifest.version,
        source_languages=manifest.source_languages,
        target_languages=manifest.target_languages,
        architecture=manifest.architecture,
        dimensions=asdict(manifest.dimensions),
        precision=precision,
        device="cpu",
        max_source_tokens=manifest.limits.max_source_tokens,
        max_output_tokens=manifest.limits.max_target_tokens,
        max_queue=1_000_000,
        manifest_sha256="",
        provenance="",
        licence="",
    )
    translator = Translator(
        batcher,
        Tokenizer(bundle.read(manifest.tokenizers.source)),
        Tokenizer(bundle.read(manifest.tokenizers.target)),
        eos_id=EOS_ID,
        max_source_tokens=manifest.limits.max_source_tokens,
        max_segments=1_000_000,
    )
    return ServedModel(description, translator)


async def serve(model: ServedModel) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = GrpcServer(Listener(), CallLimits(), lambda *_: None)
    await server.start(ModelTable([model]))
    server.open()
    print(json.dumps({"address": server.address, "metrics_address": None}), flush=True)
    await stop.wait()
    await server.stop(5.0)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="of CTranslate2")
    parser.add_argument("--bundle", type=Path, required=True, help="whose tokenizers and names are used")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--window-ms", type=float, default=5.0)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=choose_threads())
    options = parser.parse_args()
    compute_type = {"fp32": "float32"}.get(options.precision, options.precision)
    threads = max(1, choose_threads() // options.workers)
    peer = Peer(options.model, compute_type, workers=options.workers, threads=threads)
    batcher = WindowBatcher(peer, options.workers, options.window_ms / 1e3, options.max_batch)
    asyncio.run(serve(served_model(Bundle.open(options.bundle), options.precision, batcher)))


if __name__ == "__main__":
    main()
