"""What the service returns for a text: the engine's results, back in the shape of the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dragoman_server.engine.messages import FinishReason, Timing

__all__ = ["OnStage", "TextHypothesis", "TextTranslation"]

OnStage = Callable[[str, float, float], None]
"""Told of a stage of one call: its name, when it began and ended on the clock of `time.monotonic`."""


@dataclass(frozen=True, slots=True)
class TextHypothesis:
    """One translation of a whole text; numbers are sums over its segments."""

    text: str
    log_prob: float
    """Natural logarithm."""
    score: float
    finish_reason: FinishReason
    """`LENGTH` where at least one segment was cut."""
    output_tokens: int
    """End-of-sentence tokens not counted."""


@dataclass(frozen=True, slots=True)
class TextTranslation:
    """The translation of one text."""

    hypotheses: tuple[TextHypothesis, ...]
    """Best first, never empty."""
    source_tokens: int
    """End-of-sentence tokens not counted."""
    segments: int
    """Sentences (or pieces of over-long ones) that were translated."""
    timing: Timing
    """Sums over the segments."""
    total_seconds: float
    """From the arrival of the text to its last token."""

    @property
    def truncated(self) -> bool:
        """Whether any hypothesis was cut."""
        return any(hypothesis.finish_reason is not FinishReason.STOP for hypothesis in self.hypotheses)
