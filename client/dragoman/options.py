"""What a caller may ask of a translation: defined once for both clients and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

__all__ = ["DEFAULT_ENDPOINT", "DEFAULT_TIMEOUT", "TranslateArguments", "TranslateOptions"]

DEFAULT_ENDPOINT = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 60.0
"""Seconds that a call may take, retries included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TranslateOptions:
    """Which model is to translate, and how; the server checks the values."""

    source: str = ""
    """Language code of the text; empty: the model's own, where it has only one."""
    target: str = ""
    """Language code to translate to; empty: the model's own, where it has only one."""
    model: str = ""
    """Name of the model; empty: the one that translates the language pair."""
    beam_size: int | None = None
    """Hypotheses kept per step, 1 for greedy search; the server's default where not given."""
    n_best: int | None = None
    """Hypotheses returned per text, at most the beam size; 1 where not given."""
    length_penalty: float | None = None
    """Alpha of the GNMT length penalty; the server's default where not given."""
    max_output_tokens: int | None = None
    """Bound on the tokens generated per sentence; relative to the sentence where not given."""


class TranslateArguments(TypedDict, total=False):
    """The fields of `TranslateOptions` as keyword arguments."""

    source: str
    target: str
    model: str
    beam_size: int | None
    n_best: int | None
    length_penalty: float | None
    max_output_tokens: int | None
