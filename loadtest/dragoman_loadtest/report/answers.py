"""Whether the server was right under load: in a sentence, and answer by answer."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from dragoman_loadtest.report import words

__all__ = ["Difference", "Piece", "differences", "quality"]

Piece = tuple[str, bool]
"""Some words of an answer, and whether the other answer lacks them."""

_LONGEST, _KEPT = 32, 12  # words that both answers share; of a longer piece, so many at either end are shown


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer that is not the golden one."""

    request: str
    line: str
    source: str
    golden: list[Piece]
    loaded: list[Piece]


def quality(answers: dict[str, Any] | None) -> str:
    """The answers as a whole, in sentences; empty where none were compared."""
    compared = (answers or {}).get("compared")
    if not answers or not compared:
        return ""
    said = [
        f"{words.count(answers.get('identical'))} of {words.count(compared)} answers are word for word those "
        "of the server when nothing else is asked of it."
    ]
    if against := answers.get("against_golden"):
        said.append(f"Against those, BLEU {against['bleu']:.2f} and chrF {against['chrf']:.2f}.")
    if reference := answers.get("reference"):
        loaded, golden = reference["loaded"], reference["golden"]
        said.append(
            f"Against the reference, BLEU {loaded['bleu']:.2f} under load and {golden['bleu']:.2f} without; "
            f"chrF {loaded['chrf']:.2f} and {golden['chrf']:.2f}."
        )
    return " ".join(said)


def differences(answers: dict[str, Any] | None) -> list[Difference]:
    """The answers that differ, with what differs in them marked."""
    found = []
    for difference in (answers or {}).get("different") or ():
        golden, loaded = str(difference.get("golden")), str(difference.get("loaded"))
        found.append(
            Difference(
                words.count(difference.get("request")),
                words.count(difference.get("line")),
                str(difference.get("source")),
                _marked(golden, loaded),
                _marked(loaded, golden),
            )
        )
    return found


def _marked(text: str, other: str) -> list[Piece]:
    mine, theirs = text.split(" "), other.split(" ")
    pieces: list[Piece] = []
    start = 0
    for block in difflib.SequenceMatcher(None, mine, theirs).get_matching_blocks():
        end = block.a + block.size
        pieces += [(" ".join(mine[start : block.a]), True), (_shortened(mine[block.a : end]), False)]
        start = end
    return [(piece, differs) for piece, differs in pieces if piece]


def _shortened(shared: list[str]) -> str:
    if len(shared) <= _LONGEST:
        return " ".join(shared)
    return f"{' '.join(shared[:_KEPT])} […] {' '.join(shared[-_KEPT:])}"
