"""Canary translations: what a server must find again before it serves a bundle.

They tell where a bundle is whole but does not work as it did: another release of the runtime, a processor
whose integers overflow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from dragoman_export.options import Precision
from dragoman_export.pipeline import text_pipeline
from dragoman_model.checkpoint import Checkpoint
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.messages import DecodingOptions
from dragoman_server.engine.runner import Runner
from dragoman_server.manifest import Canary

__all__ = ["TOLERANCES", "canaries"]

TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.1}
"""Largest difference of a score, by precision: ten times what the gate grants fp32 on one processor; a
value that rounds to the next float16 costs more, and to the next integer more still."""
_COUNT = 5
_MAX_SEGMENTS = 100


def canaries(
    checkpoint: Checkpoint,
    runner: Runner,
    sources: Sequence[Sequence[int]],
    options: DecodingOptions,
    precision: Precision,
) -> tuple[Canary, ...]:
    """Translate a few of the sources by the service's own way from text to text.

    Args:
        checkpoint: Has the tokenizers.
        runner: Of the precision; with slots for a beam at least.
        sources: Source ids, end-of-sentence included; a few are taken from all over.
        options: Of the search.
        precision: Decides the tolerance.

    Raises:
        EngineError: the network fails.
    """
    chosen = sources[:: max(1, len(sources) // _COUNT)][:_COUNT]
    texts = [checkpoint.source_tokenizer.decode(source[:-1]) for source in chosen]
    return asyncio.run(_translated(checkpoint, runner, texts, options, TOLERANCES[precision]))


async def _translated(
    checkpoint: Checkpoint,
    runner: Runner,
    texts: Sequence[str],
    options: DecodingOptions,
    tolerance: float,
) -> tuple[Canary, ...]:
    special = checkpoint.special
    with Engine([runner], max_queue=_MAX_SEGMENTS, bos_id=special.bos, eos_id=special.eos) as engine:
        pipeline = text_pipeline(checkpoint, engine, _MAX_SEGMENTS)
        found = await pipeline.translate(texts, checkpoint.direction, options, None)
    return tuple(
        Canary(
            text=text,
            translation=translation.hypotheses[0].text,
            score=translation.hypotheses[0].score,
            tolerance=tolerance,
            beam_size=options.beam_size,
            length_penalty=options.length_penalty,
        )
        for text, translation in zip(texts, found, strict=True)
    )
