"""What enters and leaves the engine: token ids, options and events. No text, array or runtime type."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = [
    "DecodingOptions",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Hypothesis",
    "Notify",
    "Progress",
    "Request",
    "Timing",
    "length_penalty",
    "output_limit",
]


def length_penalty(length: int, alpha: float) -> float:
    """GNMT length penalty ((5 + length) / 6) ** alpha (Wu et al. 2016, arXiv:1609.08144, equation 14).

    Args:
        length: Output tokens, the end-of-sentence token included.
        alpha: 0 ranks by log-probability alone; larger values favour longer output.
    """
    return float(((5.0 + length) / 6.0) ** alpha)


def output_limit(source_tokens: int) -> int:
    """The bound on output tokens (end-of-sentence included) of a source with that many tokens.

    A translation more than twice as long as its source, and 20 tokens on top, has derailed.
    """
    return 2 * source_tokens + 20


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """How to search for the translation of one segment.

    Raises:
        ValueError: a field is out of its range; the message begins with the field's name.
    """

    beam_size: int = 4
    """Hypotheses kept per step; 1 is greedy search."""
    n_best: int = 1
    """Hypotheses returned, at most `beam_size`."""
    length_penalty: float = 0.6
    """Alpha of the GNMT length penalty; 0.6 and a beam of 4 are the values of Vaswani et al. 2017."""
    max_output_tokens: int | None = None
    """Bound on output tokens; `None` leaves it to `output_limit` and the model."""

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ValueError(f"beam_size must be at least 1, not {self.beam_size}")
        if not 1 <= self.n_best <= self.beam_size:
            raise ValueError(f"n_best must be between 1 and beam_size ({self.beam_size}), not {self.n_best}")
        if not (math.isfinite(self.length_penalty) and 0.0 <= self.length_penalty <= 10.0):
            raise ValueError(f"length_penalty must be between 0 and 10, not {self.length_penalty}")
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise ValueError(f"max_output_tokens must be at least 1, not {self.max_output_tokens}")


class FinishReason(enum.Enum):
    """Why a hypothesis ended."""

    STOP = "stop"
    """The model produced the end-of-sentence token."""
    LENGTH = "length"
    """The bound on output tokens was reached: the translation is cut."""
    REPETITION = "repetition"
    """It repeated a phrase again and again: the translation is cut."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One translation of a segment."""

    tokens: tuple[int, ...]
    """Output ids without the end-of-sentence token."""
    log_prob: float
    """Sum of the log-probabilities of `tokens` (and of the end-of-sentence token where it was produced)."""
    score: float
    """`log_prob / length_penalty(length, alpha)`, the end-of-sentence token counted where produced."""
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a segment's time went, in seconds."""

    queue: float
    encode: float
    decode: float


@dataclass(frozen=True, slots=True)
class Progress:
    """The ids of the best translation that no later step can change; sent only when asked for."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The segment is translated."""

    hypotheses: tuple[Hypothesis, ...]
    """Best first, `n_best` of them (fewer only where the search found fewer)."""
    timing: Timing


@dataclass(frozen=True, slots=True)
class Failed:
    """The segment will not be translated."""

    error: Exception


Event = Progress | Finished | Failed
Notify = Callable[[Event], None]
"""Called on the engine's thread; must return at once (asyncio callers pass on by call_soon_threadsafe)."""


@dataclass(eq=False, slots=True)
class Request:
    """One segment on its way through the engine; the handle by which a caller cancels it."""

    source: tuple[int, ...]
    """Source ids, the end-of-sentence token included."""
    options: DecodingOptions
    notify: Notify
    deadline: float | None = None
    """On the clock of `time.monotonic`; `None` for no deadline."""
    wants_progress: bool = False
    first_token: int | None = None
    """What every hypothesis has to begin with, at no cost to its log-probability; `None`: what is best."""
    client: str = ""
    """Who asks: clients take turns."""
    may_loop: bool = False
    """Whether its translation is not cut where it repeats itself again and again."""
    max_output_tokens: int = 0
    """The bound in force, end-of-sentence included; set by the engine at admission."""
    arrived: float = 0.0
    """When the engine took it, on the clock of `time.monotonic`."""
    cancelled: bool = field(default=False)
    """Set by `Engine.cancel`; looked at before every step."""
