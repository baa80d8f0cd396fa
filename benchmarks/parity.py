"""Does the served model say what the trained model says? On real sentences, token for token.

Compares, for greedy search and a beam of 4: (1) cached with uncached decoding in torch; (2) what the endpoint
answers with the torch reference; (3) sentences sent one by one with the same ones sent many at a time with
mixed options. A difference counts as a tie where both answers' scores differ by less than 1e-4; every
difference is listed.

    python benchmarks/parity.py --checkpoint DIR --bundle DIR --source FILE [--count 1000] [--report FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

import dragoman
from dragoman_model.checkpoint import Checkpoint, load_checkpoint
from dragoman_model.evaluation import read_lines
from dragoman_model.reference import beam_search
from dragoman_server.engine.messages import Hypothesis, output_limit
from serving import served

TIE = 1e-4
ALPHA = 0.6
CONCURRENCY = 64
MIXED_OPTIONS: list[dict[str, Any]] = [
    {"beam_size": 1},
    {"beam_size": 4},
    {"beam_size": 2, "n_best": 2, "length_penalty": 1.0},
    {"beam_size": 5, "n_best": 3, "length_penalty": 0.0},
    {"beam_size": 4, "max_output_tokens": 8},
]


def watched(items: Sequence[Any], what: str) -> Any:
    """The items, with a progress bar on standard error."""
    return track(items, what, console=Console(stderr=True))


def reference(checkpoint: Checkpoint, text: str, beam_size: int, *, cached: bool = True) -> Hypothesis:
    """The torch decoder's best translation."""
    source = [*checkpoint.source_tokenizer.encode(text), 3]
    limit = output_limit(len(source))
    return beam_search(
        checkpoint.model, source, beam_size=beam_size, max_output_tokens=limit, alpha=ALPHA, cached=cached
    )[0]


@dataclass(frozen=True)
class Answer:
    """A translation and its score, which does not decide whether two are equal."""

    content: tuple[object, ...]
    score: float = field(compare=False)


def by_tokens(hypotheses: Sequence[Hypothesis]) -> list[Answer]:
    """Equal where the tokens are."""
    return [Answer(hypothesis.tokens, hypothesis.score) for hypothesis in hypotheses]


def by_text(hypotheses: Sequence[dragoman.Hypothesis]) -> Answer:
    """Equal where all texts and numbers of tokens are; the score is the best one's."""
    return Answer(tuple((h.text, h.output_tokens) for h in hypotheses), hypotheses[0].score)


def compare(texts: Sequence[str], left: Sequence[Answer], right: Sequence[Answer]) -> dict[str, Any]:
    """How many answers are the same, and what the others are."""
    different = [
        {"text": text, "left": a.content, "right": b.content, "score_difference": abs(a.score - b.score)}
        for text, a, b in zip(texts, left, right, strict=True)
        if a != b
    ]
    ties = sum(entry["score_difference"] < TIE for entry in different)
    same = len(texts) - len(different)
    counts = {"sentences": len(texts), "same": same, "share": same / len(texts), "ties": ties}
    return {**counts, "different": different}


def against_reference(
    checkpoint: Checkpoint, texts: list[str], address: str, beam_size: int
) -> dict[str, Any]:
    """Cached against uncached torch, and the endpoint against torch."""
    cached = [reference(checkpoint, text, beam_size) for text in watched(texts, f"torch, beam {beam_size}")]
    uncached = [
        reference(checkpoint, text, beam_size, cached=False)
        for text in watched(texts, f"torch without cache, beam {beam_size}")
    ]
    with dragoman.Client(address) as client:
        answers = [
            by_text(client.translate(text, beam_size=beam_size, length_penalty=ALPHA).hypotheses)
            for text in watched(texts, f"endpoint, beam {beam_size}")
        ]
    decode = checkpoint.target_tokenizer.decode
    expected = [Answer(((decode(best.tokens), len(best.tokens)),), best.score) for best in cached]
    return {
        "cached_and_uncached": compare(texts, by_tokens(cached), by_tokens(uncached)),
        "endpoint_and_torch": compare(texts, expected, answers),
    }


async def alone_and_together(texts: list[str], address: str) -> dict[str, Any]:
    """Every sentence with options drawn for it: one call at a time, then `CONCURRENCY` at a time."""
    draw = random.Random(0)
    options = [draw.choice(MIXED_OPTIONS) for _ in texts]
    async with dragoman.AsyncClient(address, timeout=300) as client:

        async def answer(index: int) -> Answer:
            return by_text((await client.translate(texts[index], **options[index])).hypotheses)

        alone = [await answer(index) for index in watched(range(len(texts)), "one by one")]
        places = asyncio.Semaphore(CONCURRENCY)

        async def in_turn(index: int) -> Answer:
            async with places:
                return await answer(index)

        together = await asyncio.gather(*(in_turn(index) for index in range(len(texts))))
    return compare(texts, alone, together)


def main() -> None:
    """Compare, print, and fail where fewer than 99.9 % agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.checkpoint)
    texts = read_lines(options.source)[: options.count]
    started = time.monotonic()
    with served(options.bundle) as server:
        report: dict[str, Any] = {
            "greedy": against_reference(checkpoint, texts, server.address, 1),
            "beam_4": against_reference(checkpoint, texts, server.address, 4),
            "alone_and_together": asyncio.run(alone_and_together(texts, server.address)),
        }
    report["minutes"] = round((time.monotonic() - started) / 60, 1)
    text = json.dumps(report, indent=2, ensure_ascii=False)
    print(text)
    if options.report:
        options.report.write_text(text + "\n", encoding="utf-8")
    parts = [*report["greedy"].values(), *report["beam_4"].values(), report["alone_and_together"]]
    sys.exit(0 if all((part["same"] + part["ties"]) / part["sentences"] >= 0.999 for part in parts) else 1)


if __name__ == "__main__":
    main()
