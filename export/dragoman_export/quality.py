"""How good a precision's translations are, by references: what rounding costs, in the field's own measure."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from dragoman_export.pipeline import text_pipeline
from dragoman_model.checkpoint import Checkpoint
from dragoman_model.evaluation import read_lines, score
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.messages import DecodingOptions
from dragoman_server.engine.runner import Runner
from dragoman_server.manifest import Score
from dragoman_server.strict_json import parse_json

__all__ = ["ReferencedText", "quality"]


@dataclass(frozen=True, slots=True)
class ReferencedText:
    """Texts and their translations, line by line."""

    name: str
    sources: list[str]
    references: list[str]

    @classmethod
    def read(cls, source: Path, reference: Path) -> ReferencedText:
        """Read two line-aligned files.

        Raises:
            ValueError: a file is not UTF-8, or they differ in their number of lines.
            OSError: a file cannot be read.
        """
        sources, references = read_lines(source), read_lines(reference)
        if len(sources) != len(references):
            raise ValueError(
                f"{source} has {len(sources)} lines and {reference} has {len(references)}: "
                "the reference must translate it line by line"
            )
        return cls(source.name, sources, references)


def quality(
    checkpoint: Checkpoint,
    runner: Runner,
    text: ReferencedText,
    options: DecodingOptions,
) -> tuple[Score, ...]:
    """BLEU and chrF of the engine's translations.

    Args:
        checkpoint: Has the tokenizers.
        runner: Of the precision that is scored; with slots for a beam at least.
        text: With references.
        options: Of the search.

    Raises:
        EngineError: the network fails.
    """
    outputs = asyncio.run(_translations(checkpoint, runner, text.sources, options))
    search = "greedy" if options.beam_size == 1 else f"beam {options.beam_size}"
    found = score(outputs, text.references).records(f"{text.name}, {search}")
    return tuple(parse_json(Score, record) for record in found)


async def _translations(
    checkpoint: Checkpoint,
    runner: Runner,
    sources: list[str],
    options: DecodingOptions,
) -> list[str]:
    characters = sum(map(len, sources))  # no text has more segments than characters
    special = checkpoint.special
    with Engine([runner], max_queue=characters + 1, bos_id=special.bos, eos_id=special.eos) as engine:
        pipeline = text_pipeline(checkpoint, engine, max_segments=characters + 1)
        found = await pipeline.translate(sources, checkpoint.direction, options, None)
    return [translation.hypotheses[0].text for translation in found]
