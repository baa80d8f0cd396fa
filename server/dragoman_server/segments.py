"""Text to sentences and back: every byte between sentences is kept, so that joining gives the text again."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import sentencex

__all__ = ["Segment", "fit", "join", "split"]

# What ends a line for Unicode and for `str.splitlines`: a sentence never goes on across it.
_LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
_ONE_SPACE = re.compile(r"\s")
_WHITE_SPACE = re.compile(r"\s+")
_CLAUSE_END = re.compile(r"(?<=[,;:\u2013\u2014)\u3001\uff0c\uff1b\uff1a])\s*")


@dataclass(frozen=True, slots=True)
class Segment:
    """A sentence, or a piece of one that is too long."""

    leading: str
    """White space between the segment before (or the start of the text) and this one."""
    text: str
    """Begins and ends with something that is no white space; empty where a text ends in white space."""


def join(segments: list[Segment], texts: list[str]) -> str:
    """The text whose i-th segment reads `texts[i]`."""
    return "".join(segment.leading + text for segment, text in zip(segments, texts, strict=True))


def split(text: str, language: str) -> list[Segment]:
    """Split at line breaks and at the ends of sentences.

    Args:
        text: Any text.
        language: Its code, such as "en"; what ends a sentence depends on it (abbreviations, punctuation).

    Returns:
        Segments such that `join(segments, [s.text for s in segments]) == text`.
    """
    segments: list[Segment] = []
    leading = ""
    for part in _parts(text, language):
        core = part.strip()
        start = len(part) - len(part.lstrip())
        leading += part[:start]
        if core:
            segments.append(Segment(leading, core))
            leading = part[start + len(core) :]
    return [*segments, Segment(leading, "")] if leading else segments


def fit(segment: Segment, max_tokens: int, count: Callable[[str], int]) -> list[Segment]:
    """Split a segment until every piece has at most `max_tokens` tokens.

    It is split in two near its middle, at the end of a clause if there is one, else at white space, else
    between any two characters; then each half the same way.

    Args:
        segment: A segment of `split`.
        max_tokens: Bound on a piece. A single character is never split, whatever its count.
        count: The number of tokens of a text.
    """
    if len(segment.text) <= 1 or count(segment.text) <= max_tokens:
        return [segment]
    start, stop = _middle(segment.text)
    halves = (
        Segment(segment.leading, segment.text[:start]),
        Segment(segment.text[start:stop], segment.text[stop:]),
    )
    return [piece for half in halves for piece in fit(half, max_tokens, count)]


def _parts(text: str, language: str) -> Iterator[str]:
    """Cut `text` where sentences or lines end; the parts joined are the text."""
    position = 0
    for line_break in _LINE_BREAKS.finditer(text):
        yield from _sentences(text[position : line_break.start()], language)
        yield line_break.group()
        position = line_break.end()
    yield from _sentences(text[position:], language)


def _sentences(line: str, language: str) -> list[str]:
    if not line or line.isspace():
        return [line]
    # White space beyond ASCII makes sentencex 1.0 slice within a character and panic.
    plain = _ONE_SPACE.sub(" ", line)
    try:
        sentences = sentencex.segment(language, plain)
    except BaseException as error:
        # What Rust code panics with is no Exception, and its class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        return [line]
    # The library means to keep every character; a line that it does not keep stays one sentence.
    return _cut(line, map(len, sentences)) if "".join(sentences) == plain else [line]


def _cut(line: str, lengths: Iterable[int]) -> list[str]:
    ends = [0, *itertools.accumulate(lengths)]
    return [line[start:end] for start, end in itertools.pairwise(ends)]


def _middle(text: str) -> tuple[int, int]:
    """Where to cut `text` in two: the span of white space, perhaps empty, between the halves."""
    for boundary in (_CLAUSE_END, _WHITE_SPACE):
        spans = [match.span() for match in boundary.finditer(text)]
        inner = [span for span in spans if len(text) <= 4 * span[0] and 4 * span[1] <= 3 * len(text)]
        if inner:
            return min(inner, key=lambda span: abs(sum(span) - len(text)))
    return len(text) // 2, len(text) // 2
