"""What the engine tells about itself: totals, and a record of every event for whoever observes."""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Protocol, TypeVar

from dragoman_server.engine.messages import Failed, Finished, Request, Timing
from dragoman_server.errors import BusyError, CancelledError, DeadlineError, ShuttingDownError

__all__ = [
    "EncodeRecord",
    "EngineStats",
    "FinishRecord",
    "Observer",
    "Outcome",
    "StepRecord",
    "Telemetry",
    "Totals",
    "finish_record",
]

_log = logging.getLogger(__name__)
_Record = TypeVar("_Record")


class Outcome(enum.Enum):
    """How a request ended."""

    STOP = "stop"
    """Its best hypothesis ended by itself."""
    LENGTH = "length"
    """Its best hypothesis was cut at the bound on output tokens."""
    REPETITION = "repetition"
    """Its best hypothesis was cut where it repeated itself."""
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"
    REFUSED = "refused"
    """It had to make room for another client's, or would not have been done by its deadline."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EncodeRecord:
    """One run of the encoder."""

    requests: int
    tokens: int
    """Source tokens, padding not counted."""
    padding: int
    """Positions beyond the sources' ends, up to the longest."""
    seconds: float


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One decode step."""

    rows: int
    """Rows that ran."""
    padded_rows: int
    """Those among them that held no hypothesis."""
    seconds: float


@dataclass(frozen=True, slots=True)
class FinishRecord:
    """The end of one request."""

    outcome: Outcome
    source_tokens: int
    output_tokens: int
    """Of the best hypothesis, end-of-sentence not counted; 0 where there is none."""
    timing: Timing | None
    """`None` where there is no translation."""
    row_steps: int = 0
    """Rows that decode steps ran for it, summed over the steps."""


class Observer(Protocol):
    """Is told on the workers' threads, possibly on several at once; must return at once."""

    def on_refused(self, cause: str) -> None:
        """A request was turned away."""

    def on_encode(self, record: EncodeRecord) -> None:
        """An encoder batch ran."""

    def on_step(self, record: StepRecord) -> None:
        """A decode step ran."""

    def on_finished(self, record: FinishRecord) -> None:
        """A request got its last event."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the engine's start; the names are those of the records."""

    refused: int = 0
    """Requests turned away at once: the queue was full, or the deadline too near."""
    encoder_batches: int = 0
    encoder_tokens: int = 0
    encoder_padding: int = 0
    steps: int = 0
    rows: int = 0
    padded_rows: int = 0
    output_tokens: int = 0
    outcomes: Mapping[Outcome, int] = field(
        default_factory=lambda: MappingProxyType(dict.fromkeys(Outcome, 0))
    )


_COUNTS = tuple(field.name for field in fields(Totals) if field.name != "outcomes")


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine at one moment."""

    waiting: int
    """Requests that wait for slots."""
    unanswered: int
    """Requests accepted and not answered yet, waiting or decoding."""
    slots_in_use: int
    slots: int
    stalled_workers: int
    totals: Totals


def finish_record(request: Request, event: Finished | Failed, row_steps: int) -> FinishRecord:
    """What to record of a request's last event."""
    source_tokens = len(request.source)
    if isinstance(event, Failed):
        return FinishRecord(_failure(event.error), source_tokens, 0, None, row_steps)
    best = event.hypotheses[0]
    outcome = Outcome(best.finish_reason.value)
    return FinishRecord(outcome, source_tokens, len(best.tokens), event.timing, row_steps)


def _failure(error: Exception) -> Outcome:
    match error:
        case CancelledError():
            return Outcome.CANCELLED
        case DeadlineError():
            return Outcome.DEADLINE
        case ShuttingDownError():
            return Outcome.SHUTDOWN
        case BusyError():
            return Outcome.REFUSED
        case _:
            return Outcome.FAILED


class Telemetry:
    """Keeps the totals and passes records on to the observer; thread-safe."""

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._failed_batches = 0

    @property
    def failed_batches(self) -> int:
        """How many batches, of whatever worker, have failed in all their rows since one last did not."""
        return self._failed_batches

    def batch(self, *, failed: bool) -> None:
        """Note a run of the network: whether it failed, or gave no row a number."""
        if failed or self._failed_batches:
            with self._lock:
                self._failed_batches = self._failed_batches + 1 if failed else 0

    @property
    def totals(self) -> Totals:
        """The counts so far."""
        with self._lock:
            return Totals(**self._counts, outcomes=MappingProxyType(dict(self._outcomes)))

    def refused(self, error: BusyError) -> None:
        """Count a request turned away."""
        with self._lock:
            self._counts["refused"] += 1
        if self._observer is not None:
            self._tell(self._observer.on_refused, error.cause)

    def encoded(self, record: EncodeRecord) -> None:
        """Count an encoder batch."""
        with self._lock:
            self._counts["encoder_batches"] += 1
            self._counts["encoder_tokens"] += record.tokens
            self._counts["encoder_padding"] += record.padding
        if self._observer is not None:
            self._tell(self._observer.on_encode, record)

    def stepped(self, records: Sequence[StepRecord]) -> None:
        """Count decode steps."""
        with self._lock:
            self._counts["steps"] += len(records)
            self._counts["rows"] += sum(record.rows for record in records)
            self._counts["padded_rows"] += sum(record.padded_rows for record in records)
        if self._observer is not None:
            for record in records:
                self._tell(self._observer.on_step, record)

    def finished(self, record: FinishRecord) -> None:
        """Count a request's end."""
        with self._lock:
            self._outcomes[record.outcome] += 1
            self._counts["output_tokens"] += record.output_tokens
        if self._observer is not None:
            self._tell(self._observer.on_finished, record)

    @staticmethod
    def _tell(method: Callable[[_Record], None], record: _Record) -> None:
        try:
            method(record)
        except Exception:
            _log.exception("the engine's observer failed")
