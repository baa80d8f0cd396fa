"""What calls return: plain frozen dataclasses."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FinishReason", "Hypothesis", "Limits", "Model", "ModelSummary", "Timing", "Translation"]


class FinishReason(enum.Enum):
    """Why a hypothesis ended."""

    STOP = "stop"
    """Every sentence ended by itself."""
    LENGTH = "length"
    """At least one sentence was cut at the bound on output tokens."""
    REPETITION = "repetition"
    """At least one sentence repeated a phrase again and again, and was cut there."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One translation of a text."""

    text: str
    log_prob: float
    """Sum of the log-probabilities of the output tokens, natural logarithm."""
    score: float
    """`log_prob` divided by the length penalty: what hypotheses are ranked by."""
    finish_reason: FinishReason
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one text went on the server, in seconds."""

    queue_seconds: float
    encode_seconds: float
    decode_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Translation:
    """The translation of one text."""

    hypotheses: tuple[Hypothesis, ...]
    """Best first, never empty."""
    source_tokens: int
    segments: int
    """Sentences that the text was split into."""
    truncated: bool
    """Whether any part of the translation was cut."""
    timing: Timing
    model: str
    version: str

    @property
    def text(self) -> str:
        """The best translation."""
        return self.hypotheses[0].text


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model that a server holds."""

    name: str
    version: str
    source_languages: tuple[str, ...]
    target_languages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes; of texts per call, of tokens per sentence."""

    max_texts: int
    max_text_bytes: int
    max_source_tokens: int
    max_output_tokens: int
    max_beam_size: int
    max_queue: int
    max_call_tokens: int
    max_concurrent_calls: int


@dataclass(frozen=True, slots=True)
class Model:
    """All that a server says of one model."""

    summary: ModelSummary
    architecture: str
    dimensions: Mapping[str, int]
    precision: str
    device: str
    limits: Limits
    manifest_sha256: str
    provenance: str
    licence: str
