"""Is the server right while it is busy? Every answer against the one it gives when nothing else is asked."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from dragoman.options import TranslateOptions
from dragoman_loadtest.corpus import Corpus
from dragoman_loadtest.measures import answered
from dragoman_loadtest.options import Target
from dragoman_loadtest.samples import Code, Samples
from dragoman_loadtest.wire import Wire, serialised

__all__ = ["Golden", "compare_answers", "golden_answers"]

Golden = dict[int, str]
"""The unloaded server's answer to each text, by its index."""

_TIMEOUT = 120.0
_NAMED = 10
_RETRIES, _RETRY_SECONDS = 20, 0.25  # the run before may still fill the server's queue


def golden_answers(
    target: Target,
    corpus: Corpus,
    options: TranslateOptions,
    items: Sequence[int],
    model: dict[str, Any],
    cache: Path,
    progress: Callable[[int, int], None],
) -> Golden:
    """Ask for each text alone, one after the other; what the cache has of the same model is not asked again.

    Args:
        target: The server; nothing else should be asked of it meanwhile.
        corpus: The texts.
        options: How they are translated in the run.
        items: Which texts.
        model: As `describe_model` says: its manifest's hash is what makes answers comparable.
        cache: Folder that answers are kept in.
        progress: Told how many of how many are done.

    Raises:
        ConnectionError: the server does not answer a text.
    """
    file = cache / f"{_key(corpus, options, model)}.json"
    known = _read(file)
    missing = [item for item in items if item not in known]
    if missing:
        known |= asyncio.run(_asked(target, corpus, options, missing, progress))
        cache.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known, ensure_ascii=False), encoding="utf-8")
    return known


def _key(corpus: Corpus, options: TranslateOptions, model: dict[str, Any]) -> str:
    facts = [corpus.sha256, asdict(options), model.get("manifest_sha256"), model.get("precision")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _read(file: Path) -> Golden:
    try:
        return {int(i): str(text) for i, text in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}  # not there, or not whole: asked anew


async def _asked(
    target: Target,
    corpus: Corpus,
    options: TranslateOptions,
    items: Sequence[int],
    progress: Callable[[int, int], None],
) -> Golden:
    wire = Wire(target)
    unary, _ = serialised([corpus.texts[item] for item in items], options)
    found: Golden = {}
    try:
        for done, (item, request) in enumerate(zip(items, unary, strict=True)):
            outcome = await wire.unary(request, _TIMEOUT, None)
            for _ in range(_RETRIES):
                if outcome.code not in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED):
                    break
                await asyncio.sleep(_RETRY_SECONDS)
                outcome = await wire.unary(request, _TIMEOUT, None)
            if outcome.code is not Code.OK or outcome.translation is None:
                raise ConnectionError(
                    f"line {item + 1} of {corpus.name} got no answer without load: {outcome.error}"
                )
            found[item] = outcome.translation.hypotheses[0].text
            progress(done + 1, len(items))
    finally:
        await wire.close()
    return found


def compare_answers(samples: Samples, golden: Golden, corpus: Corpus) -> dict[str, Any]:
    """How the answers under load differ from the golden ones, and how good they are by the reference.

    Returns:
        The share that is identical, BLEU and chrF of the loaded answers against the golden ones where any
        differ, the first differing requests by number and line; with a reference, BLEU and chrF of both.
    """
    records = samples.records
    indices = np.flatnonzero(answered(records))
    loaded = [samples.answers[i] or "" for i in indices]
    items = [int(item) for item in records["item"][indices]]
    expected = [golden[item] for item in items]
    differing = [i for i, (a, b) in enumerate(zip(loaded, expected, strict=True)) if a != b]
    report: dict[str, Any] = {
        "compared": len(loaded),
        "identical": len(loaded) - len(differing),
        "identical_share": 1.0 - len(differing) / len(loaded) if loaded else None,
        "different": [
            _difference(records[indices[i]], corpus, expected[i], loaded[i]) for i in differing[:_NAMED]
        ],
    }
    if differing:
        report["against_golden"] = _scores(loaded, expected)
    if corpus.references is not None and loaded:
        references = [corpus.references[item] for item in items]
        under_load, alone = _scores(loaded, references), _scores(expected, references)
        report["reference"] = {
            "loaded": under_load,
            "golden": alone,
            "bleu_difference": under_load["bleu"] - alone["bleu"],
            "chrf_difference": under_load["chrf"] - alone["chrf"],
        }
    return report


def _difference(record: NDArray[Any], corpus: Corpus, expected: str, found: str) -> dict[str, Any]:
    item = int(record["item"])
    return {
        "request": int(record["request"]),
        "line": item + 1,
        "source": corpus.texts[item],
        "golden": expected,
        "loaded": found,
    }


def _scores(hypotheses: list[str], references: list[str]) -> dict[str, Any]:
    bleu, chrf = BLEU(), CHRF()
    return {
        "bleu": bleu.corpus_score(hypotheses, [references]).score,
        "chrf": chrf.corpus_score(hypotheses, [references]).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }
