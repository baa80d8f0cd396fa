"""The sentences on which an export is checked, and those that show how large activations become."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from dragoman_model.checkpoint import Checkpoint

__all__ = ["Sources", "calibration_sources"]

_SENTENCES = 32
_SCALE_SENTENCES = 256
_LONGEST = 24
_ORDINARY = 10
_SEED = 1


@dataclass(frozen=True, slots=True)
class Sources:
    """Source ids, end-of-sentence included."""

    gate: list[list[int]]
    """To be translated alike by torch and by the graphs."""
    scales: list[list[int]]
    """To show how large activations become: others than the gate's, where there are enough."""
    sentence: str
    """One of ordinary length, to make odd texts of."""


def calibration_sources(checkpoint: Checkpoint, file: Path | None) -> Sources:
    """The first lines of `file`, or random ids of mixed lengths.

    Raises:
        ValueError: no line of `file` has text, or `file` is not UTF-8.
        OSError: `file` cannot be read.
    """
    around = len(checkpoint.languages.prefix(checkpoint.direction)) + 1  # the tokens that every source has
    longest = min(_LONGEST, checkpoint.config.max_positions) - around
    if file is None:
        gate = _random_sources(checkpoint, longest, _SENTENCES, _SEED)
        return Sources(
            gate,
            _random_sources(checkpoint, longest, _SCALE_SENTENCES, _SEED + 1),
            checkpoint.source_tokenizer.decode(gate[_SENTENCES // 3]),
        )
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8") from error
    if not lines:
        raise ValueError(f"{file} has no line of text to check the export with")
    lines = lines[: _SENTENCES + _SCALE_SENTENCES]
    sources = [checkpoint.source_ids(line, longest) for line in lines]
    sentence = min(lines, key=lambda line: abs(len(line.split()) - _ORDINARY))
    return Sources(sources[:_SENTENCES], sources[_SENTENCES:] or sources, sentence.strip())


def _random_sources(checkpoint: Checkpoint, longest: int, count: int, seed: int) -> list[list[int]]:
    generator = random.Random(seed)  # noqa: S311 - nothing secret
    lengths = [1 + i * (longest - 1) // (count - 1) for i in range(count)]
    special, vocabulary = checkpoint.special, range(checkpoint.source_tokenizer.vocabulary_size)
    prefix = checkpoint.languages.prefix(checkpoint.direction)
    words = [i for i in vocabulary if i not in (special.pad, special.unk, special.bos, special.eos)]
    return [[*prefix, *generator.choices(words, k=length), special.eos] for length in lengths]
