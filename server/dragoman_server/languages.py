"""How a network is told which languages are meant, where it knows several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Direction", "LanguageTokens"]


@dataclass(frozen=True, slots=True)
class Direction:
    """What a text is translated from, and to: language codes."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class LanguageTokens:
    """The ids that name languages; all empty for a network of one language pair.

    M2M100 (Fan et al. 2020, arXiv:2010.11125) begins a source with its own language and is made to begin the
    translation with the other; Marian models of several target languages begin a source with its target's.
    """

    source: Mapping[str, int] = field(default_factory=dict)
    """By source language, what a source begins with."""
    target: Mapping[str, int] = field(default_factory=dict)
    """By target language, what a source begins with (after the one above)."""
    forced: Mapping[str, int] = field(default_factory=dict)
    """By target language, the first token of every translation."""

    def prefix(self, direction: Direction) -> tuple[int, ...]:
        """What a source begins with."""
        named = (self.source.get(direction.source), self.target.get(direction.target))
        return tuple(token for token in named if token is not None)

    def first(self, direction: Direction) -> int | None:
        """The token that a translation has to begin with; `None` for whichever is best."""
        return self.forced.get(direction.target)
