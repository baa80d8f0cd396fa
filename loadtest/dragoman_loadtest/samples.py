"""What became of each request: one record each, and the answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RECORD", "Code", "Collection", "Phase", "Samples"]


class Phase(IntEnum):
    """The part of a run that a request belongs to."""

    WARM_UP = 0
    MEASURED = 1


class Code(IntEnum):
    """How a request ended: gRPC's status codes, and two ends of our own."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16
    OPEN = 100
    """Not answered when the run ended: its latency is at least what is recorded."""
    DROPPED = 101
    """Never sent: the client had too many requests in flight. The run is invalid."""


RECORD = np.dtype(
    [
        ("request", np.int32),  # index in the phase's schedule
        ("item", np.int32),  # index of the text
        ("fate", np.uint8),
        ("process", np.uint8),
        ("code", np.uint8),
        # Seconds on the clock of `time.monotonic`, which all processes of a machine share; nan: never.
        ("scheduled", np.float64),
        ("sent", np.float64),
        ("first", np.float64),  # first piece of a streamed translation
        ("done", np.float64),
        # As the server counted and measured.
        ("source_tokens", np.int32),
        ("output_tokens", np.int32),
        ("segments", np.int32),
        ("truncated", np.bool_),
        ("queue", np.float32),
        ("encode", np.float32),
        ("decode", np.float32),
        ("server", np.float32),
    ]
)


@dataclass(slots=True)
class Samples:
    """Some requests: a record each, and beside it the answer."""

    records: NDArray[Any] = field(default_factory=lambda: np.zeros(0, RECORD))
    answers: list[str | None] = field(default_factory=list)
    gaps: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Seconds between the pieces of streamed translations."""
    errors: dict[str, int] = field(default_factory=dict)
    """How often a message came with an error, such as "UNAVAILABLE: connection refused"."""

    def __len__(self) -> int:
        return len(self.records)


class Collection:
    """Samples that grow as reports come in."""

    def __init__(self) -> None:
        self._records, self._count = np.zeros(1024, RECORD), 0
        self._answers: list[str | None] = []
        self._gaps: list[NDArray[np.float32]] = []
        self._errors: Counter[str] = Counter()

    @property
    def records(self) -> NDArray[Any]:
        """All so far; a view that later additions leave as it is."""
        return self._records[: self._count]

    def add(self, samples: Samples) -> None:
        """Take in a report."""
        end = self._count + len(samples)
        if end > len(self._records):
            grown = np.zeros(max(end, 2 * len(self._records)), RECORD)
            grown[: self._count] = self.records
            self._records = grown
        self._records[self._count : end] = samples.records
        self._count = end
        self._answers += samples.answers
        self._gaps.append(samples.gaps)
        self._errors.update(samples.errors)

    def samples(self) -> Samples:
        """All so far."""
        gaps = np.concatenate(self._gaps) if self._gaps else np.zeros(0, np.float32)
        return Samples(self.records.copy(), list(self._answers), gaps, dict(self._errors))
