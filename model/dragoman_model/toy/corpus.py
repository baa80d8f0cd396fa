"""Distinct toy sentence pairs, and the files of a corpus made of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dragoman_model.toy.english import english_words
from dragoman_model.toy.german import german_words
from dragoman_model.toy.sampling import SentenceSampler
from dragoman_model.toy.syntax import Sentence

__all__ = ["CorpusSizes", "generate_pairs", "say", "write_corpus"]

_MIN_WORDS = 3
_MAX_WORDS = 30
_MAX_HELD_OUT = 1000


@dataclass(frozen=True, slots=True)
class CorpusSizes:
    """How many pairs each part of a corpus has."""

    train: int
    valid: int
    test: int


def generate_pairs(count: int, seed: int, *, max_relative_clauses: int = 2) -> Iterator[tuple[str, str]]:
    """Yields distinct (English, German) sentence pairs, the same for the same arguments on every platform.

    The English determines the German, so no English sentence comes twice either. A sentence has 3 to 30
    words, or up to 10 more for each relative clause beyond two. What was yielded is remembered: memory grows
    with `count`, and runs out long before the grammar does.

    Args:
        count: How many pairs.
        seed: Another seed gives other pairs.
        max_relative_clauses: The longest chain of relative clauses, "the dog that sees the cat that ...".

    Raises:
        ValueError: `count` or `max_relative_clauses` is negative.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, not {count}")
    if max_relative_clauses < 0:
        raise ValueError(f"max_relative_clauses must not be negative, not {max_relative_clauses}")
    return _distinct_pairs(count, seed, max_relative_clauses)


def write_corpus(directory: Path, *, pairs: int, seed: int) -> CorpusSizes:
    """Writes train.en, train.de, valid.en, valid.de, test.en and test.de: one sentence per line, UTF-8.

    The parts share no English sentence. The training part has `pairs` pairs, the other two have a twentieth
    of that each, but at least 1 and at most 1000.

    Raises:
        ValueError: `pairs` is less than 1.
        OSError: The directory cannot be made or written.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, not {pairs}")
    held_out = min(_MAX_HELD_OUT, max(1, pairs // 20))
    every = generate_pairs(pairs + 2 * held_out, seed)
    directory.mkdir(parents=True, exist_ok=True)
    _write_part(directory, "train", islice(every, pairs))
    _write_part(directory, "valid", islice(every, held_out))
    _write_part(directory, "test", every)
    return CorpusSizes(train=pairs, valid=held_out, test=held_out)


def say(sentence: Sentence) -> tuple[str, str]:
    """The sentence in English and in German."""
    mark = "?" if sentence.question else "."
    return _text(english_words(sentence), mark), _text(german_words(sentence), mark)


def _distinct_pairs(count: int, seed: int, max_relative_clauses: int) -> Iterator[tuple[str, str]]:
    # Not for secrets: the sequence must be the same everywhere.
    sampler = SentenceSampler(random.Random(seed), max_relative_clauses)  # noqa: S311
    longest = _MAX_WORDS + 10 * max(0, max_relative_clauses - 2)
    seen: set[str] = set()
    while len(seen) < count:
        english, german = say(sampler.sentence())
        fits = all(_MIN_WORDS <= len(text.split()) <= longest for text in (english, german))
        if fits and english not in seen:
            seen.add(english)
            yield english, german


def _text(words: list[str], mark: str) -> str:
    """Joins words: one comma where several meet, none at the ends, a capital first, the mark last."""
    text = " ".join(word for word in words if word).strip(", ")
    while ", ," in text:
        text = text.replace(", ,", ",")
    text = text.replace(" ,", ",")
    return text[0].upper() + text[1:] + mark


def _write_part(directory: Path, name: str, pairs: Iterable[tuple[str, str]]) -> None:
    english_path, german_path = directory / f"{name}.en", directory / f"{name}.de"
    with (
        english_path.open("w", encoding="utf-8", newline="\n") as english_file,
        german_path.open("w", encoding="utf-8", newline="\n") as german_file,
    ):
        for english, german in pairs:
            english_file.write(english + "\n")
            german_file.write(german + "\n")
