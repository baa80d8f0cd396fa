"""What is compared: systems that translate the same sentences with the same weights.

Each has settings of its own, of which the comparison takes the best. Sources and outputs are ids, so that
nobody's time holds the tokenizer's, except the endpoint's, whose service takes texts.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import ctranslate2_peer
import dragoman
from dragoman_model.checkpoint import Checkpoint
from dragoman_server.bundle import Bundle
from dragoman_server.engine import DecodingOptions, Engine, Event, Finished, Request
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import load_model
from dragoman_server.engine.threads import choose_threads
from dragoman_server.special_ids import BOS_ID, EOS_ID
from serving import served
from transformers_peer import Peer as TransformersPeer

TEXTS_PER_CALL = 64
CALLS = 4  # in flight at once: enough that the server never waits for its client


@dataclass(frozen=True)
class Sentence:
    """A source in both forms."""

    text: str
    ids: list[int]
    """The end symbol included."""


@dataclass(frozen=True)
class Output:
    """What a system made of a sentence: ids without the end symbol, or, from the endpoint, a text."""

    tokens: int
    """Those of the translation, its end symbol included."""
    ids: list[int] = field(default_factory=list)
    text: str = ""


Translate = Callable[[Sequence[Sentence], int], list[Output]]
"""Of sentences and a beam size."""


@dataclass(frozen=True)
class System:
    """One contestant."""

    name: str
    precision: str
    settings: dict[str, Translate]
    """By what is set."""


def _of_ids(results: Sequence[Sequence[int]]) -> list[Output]:
    return [Output(len(ids) + 1, ids=list(ids)) for ids in results]


def _engine(engine: Engine) -> Translate:
    """All sources at once."""

    def translate(sentences: Sequence[Sentence], beam_size: int) -> list[Output]:
        results: list[list[int]] = [[] for _ in sentences]
        left, done, lock = len(sentences), threading.Event(), threading.Lock()

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
        for index, sentence in enumerate(sentences):
            engine.submit(Request(tuple(sentence.ids), options, notifier(index)))
        done.wait()
        return _of_ids(results)

    return translate


@contextlib.contextmanager
def engine(bundle: Bundle, precision: str, splits: Sequence[tuple[int, int]], rows: int) -> Iterator[System]:
    """Dragoman without its service.

    Args:
        bundle: What to translate with.
        precision: Of the bundle's.
        splits: Workers and threads of each, to choose from.
        rows: Slots per worker.
    """
    with contextlib.ExitStack() as stack:
        settings = {}
        for workers, threads in splits:
            model = load_model(bundle, precision, threads)
            runners = [OnnxRunner(model, rows) for _ in range(workers)]
            running = Engine(runners, max_queue=1_000_000, bos_id=BOS_ID, eos_id=EOS_ID)
            settings[f"{workers} x {threads}"] = _engine(stack.enter_context(running))
        yield System("Dragoman, engine", precision, settings)


@contextlib.contextmanager
def endpoint(bundle: Bundle, precision: str, rows: int) -> Iterator[System]:
    """Dragoman over gRPC, 64 texts a call."""
    flags = ("--precision", precision, "--max-rows", str(rows))
    with (
        served(bundle.path, *flags) as server,
        dragoman.Client(server.address) as client,
        ThreadPoolExecutor(CALLS) as pool,
    ):

        def translate(sentences: Sequence[Sentence], beam_size: int) -> list[Output]:
            def call(start: int) -> list[dragoman.Translation]:
                texts = [sentence.text for sentence in sentences[start : start + TEXTS_PER_CALL]]
                return client.translate(texts, beam_size=beam_size, timeout=3600)

            parts = pool.map(call, range(0, len(sentences), TEXTS_PER_CALL))
            return [
                Output(translation.hypotheses[0].output_tokens + 1, text=translation.text)
                for part in parts
                for translation in part
            ]

        yield System("Dragoman, gRPC", precision, {"64 texts a call": translate})


def ctranslate2(
    folder: Path, precision: str, splits: Sequence[tuple[int, int]], batch_tokens: Sequence[int]
) -> System:
    """CTranslate2 with the model that `ctranslate2_convert.convert` left in `folder`."""
    compute_type = {"fp32": "float32"}.get(precision, precision)
    settings: dict[str, Translate] = {}

    def add(peer: ctranslate2_peer.Peer, name: str, tokens: int) -> None:
        settings[f"{name}, batches of {tokens} tokens"] = lambda sentences, beam_size: _of_ids(
            peer.translate([sentence.ids for sentence in sentences], beam_size, tokens)
        )

    for workers, threads in splits:
        peer = ctranslate2_peer.Peer(folder, compute_type, workers=workers, threads=threads)
        for tokens in batch_tokens:
            add(peer, f"{workers} x {threads}", tokens)
    return System("CTranslate2", precision, settings)


def transformers(checkpoint: Checkpoint, batch_sizes: Sequence[int]) -> System:
    """Hugging Face `generate`, in float32 on all cores."""
    peer = TransformersPeer(checkpoint)

    def of(batch_size: int) -> Translate:
        return lambda sentences, beam_size: _of_ids(
            peer.translate([sentence.ids for sentence in sentences], beam_size, batch_size)
        )

    return System("Transformers", "fp32", {f"batches of {size}": of(size) for size in batch_sizes})


def splits_of_cores() -> list[tuple[int, int]]:
    """Ways to divide the cores into workers and threads of each."""
    cores = choose_threads()
    return [(workers, cores // workers) for workers in range(cores, 0, -1) if cores % workers == 0]
