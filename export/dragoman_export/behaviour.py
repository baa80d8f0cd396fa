"""Texts that trip translators up, whole, through all that stands between a call and the engine.

Sentences alone do not show what becomes of a text's white space, of an empty one, or of one with hundreds of
segments. The same pipeline runs twice, on the exported graphs and on torch, and both have to say the same.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Mapping

from dragoman_export.pipeline import text_pipeline
from dragoman_model.checkpoint import Checkpoint
from dragoman_model.reference import beam_search
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.messages import (
    DecodingOptions,
    Finished,
    Hypothesis,
    Request,
    Timing,
    output_limit,
)
from dragoman_server.engine.runner import Runner
from dragoman_server.errors import DragomanServerError
from dragoman_server.manifest import Outcome
from dragoman_server.translations import TextHypothesis

__all__ = ["behaviour", "behaviour_cases"]

_LONG = 1000
_MAX_SEGMENTS = 4 * _LONG


def behaviour_cases(sentence: str) -> dict[str, str]:
    """Texts made from one sentence of the source language, by what is odd about them."""
    words = sentence.split() or ["a"]
    long = [*itertools.islice(itertools.cycle(words), _LONG)]
    lines = [" ".join(long[start : start + len(words)]) for start in range(0, _LONG, len(words))]
    return {
        "capitals": sentence.upper(),
        "placeholder": " ".join([words[0], "{name}", *words[1:]]),
        "trailing newline": sentence + "\n",
        "no final stop": sentence.rstrip(".!?"),
        "empty": "",
        "one character": words[0][0],
        # One copy a line, so that torch, who remembers, has two segments to translate.
        "1,000 words": "\n".join(lines),
    }


def behaviour(
    checkpoint: Checkpoint,
    runner: Runner,
    sentence: str,
    options: DecodingOptions,
    tie: float,
) -> dict[str, Outcome]:
    """What becomes of every one of the `behaviour_cases`.

    Args:
        checkpoint: The reference.
        runner: Of what is to be proved; with slots for a beam at least.
        sentence: In the source language.
        options: Of the search.
        tie: Largest difference of a text's scores, for each of its segments, at which two translations are
            as good as each other.
    """
    return asyncio.run(_behaviour(checkpoint, runner, behaviour_cases(sentence), options, tie))


async def _behaviour(
    checkpoint: Checkpoint,
    runner: Runner,
    cases: Mapping[str, str],
    options: DecodingOptions,
    tie: float,
) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    expecting = text_pipeline(checkpoint, _Torch(checkpoint), _MAX_SEGMENTS)
    special = checkpoint.special
    with Engine([runner], max_queue=_MAX_SEGMENTS, bos_id=special.bos, eos_id=special.eos) as engine:
        tried = text_pipeline(checkpoint, engine, _MAX_SEGMENTS)
        for case, text in cases.items():
            [expected] = await expecting.translate([text], checkpoint.direction, options, None)
            try:
                [translation] = await tried.translate([text], checkpoint.direction, options, None)
            except DragomanServerError:
                found[case] = "failed"
                continue
            same = _same(expected.hypotheses[0], translation.hypotheses[0], tie * max(1, expected.segments))
            found[case] = "same" if same else "other"
    return found


def _same(expected: TextHypothesis, found: TextHypothesis, tie: float) -> bool:
    return expected.text == found.text or math.isclose(expected.score, found.score, rel_tol=0.0, abs_tol=tie)


class _Torch:
    """The reference search as an engine; it remembers what it has translated."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model, self._special = checkpoint.model, checkpoint.special
        self._known: dict[tuple[int, ...], tuple[Hypothesis, ...]] = {}

    def submit(self, request: Request) -> None:
        """Translate at once."""
        if request.source not in self._known:
            self._known[request.source] = self._search(request)
        request.notify(Finished(self._known[request.source], Timing(0.0, 0.0, 0.0)))

    def cancel(self, request: Request) -> None:
        """Every request has ended."""

    def _search(self, request: Request) -> tuple[Hypothesis, ...]:
        found = beam_search(
            self._model,
            request.source,
            beam_size=request.options.beam_size,
            max_output_tokens=min(output_limit(len(request.source)), self._model.config.max_positions),
            alpha=request.options.length_penalty,
            special=self._special,
            first_token=request.first_token,
        )
        return tuple(found[: request.options.n_best])
