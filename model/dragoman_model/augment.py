"""Copies of training pairs that teach a model what users really send.

People shout, write titles, forget the final stop, and paste templates; a model trained on clean sentences
alone fails on all four.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["AugmentOptions", "augmented"]

_STOPS = ".!?"
_LETTERS = "ABCXYZ"
_NAMES = ("name", "user", "count", "title", "city", "date")


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """The share of pairs that get a further copy of each kind; 0 switches a kind off.

    Raises:
        ValueError: a share is not between 0 and 1.
    """

    upper_share: float = 0.03
    """Both sides in capitals."""
    title_share: float = 0.02
    """Both sides with a capital at the beginning of every word."""
    unstopped_share: float = 0.04
    """Both sides without their final stop."""
    placeholder_share: float = 0.03
    """A placeholder such as {name} or __X1__ stands at the same end of both sides."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)}")


def augmented(
    pairs: Iterable[tuple[str, str]], options: AugmentOptions, seed: int
) -> Iterator[tuple[str, str]]:
    """Yield every pair, and after some of them a copy made for robustness; the same for the same seed."""
    draw = random.Random(seed)  # noqa: S311  # not for secrets
    for source, target in pairs:
        yield source, target
        if draw.random() < options.upper_share:
            yield source.upper(), target.upper()
        if draw.random() < options.title_share:
            yield _title(source), _title(target)
        if draw.random() < options.unstopped_share and source[-1] in _STOPS and target[-1] in _STOPS:
            unstopped = source.rstrip(_STOPS), target.rstrip(_STOPS)
            if all(unstopped):
                yield unstopped
        if draw.random() < options.placeholder_share:
            yield _with_placeholder(source, target, draw)


def _title(text: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


def _with_placeholder(source: str, target: str, draw: random.Random) -> tuple[str, str]:
    """Placeholders stand where no grammar is needed to place them: before the sentence or behind it."""
    if draw.random() < 0.5:
        placeholder = "{" + draw.choice(_NAMES) + "}"
    else:
        placeholder = f"__{draw.choice(_LETTERS)}{draw.randrange(10)}__"
    if draw.random() < 0.5:
        return f"{placeholder}: {source}", f"{placeholder}: {target}"
    return f"{source} {placeholder}", f"{target} {placeholder}"
