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
from dragoman_export.torch_reference import TorchReference
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.messages import (
    DecodingOptions,
    Finished,
    Request,
    Timing,
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
    reference: TorchReference,
    runner: Runner,
    sentence: str,
    options: DecodingOptions,
    tie: float,
) -> dict[str, Outcome]:
    """What becomes of every one of the `behaviour_cases`.

    Args:
        reference: Torch, and the checkpoint.
        runner: Of what is to be proved; with slots for a beam at least.
        sentence: In the source language.
        options: Of the search.
        tie: Largest difference of a text's scores, for each of its segments, at which two translations are
            as good as each other.
    """
    return asyncio.run(_behaviour(reference, runner, behaviour_cases(sentence), options, tie))


async def _behaviour(
    reference: TorchReference,
    runner: Runner,
    cases: Mapping[str, str],
    options: DecodingOptions,
    tie: float,
) -> dict[str, Outcome]:
    checkpoint, found = reference.checkpoint, dict[str, Outcome]()
    expecting = text_pipeline(checkpoint, _Torch(reference), _MAX_SEGMENTS)
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
    """The reference search as an engine."""

    def __init__(self, reference: TorchReference) -> None:
        self._reference = reference

    def submit(self, request: Request) -> None:
        """Translate at once."""
        found = self._reference.search(request.source, request.options)
        request.notify(Finished(found, Timing(0.0, 0.0, 0.0)))

    def cancel(self, request: Request) -> None:
        """Every request has ended."""
