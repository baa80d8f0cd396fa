"""Who waits and who is admitted: pure policy, without arrays, threads or a clock (time is an argument).

Admission is strictly first in, first out, so the oldest request's wait is bounded: while it does not fit
into the free slots and memory, nobody passes it. What is admitted together is encoded in batches of similar
length.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

from dragoman_server.engine.messages import Request
from dragoman_server.engine.runner import Extent
from dragoman_server.errors import QueueFullError

__all__ = ["MAX_ENCODER_TOKENS", "MAX_PADDING", "Scheduler", "batches_of_similar_length", "is_expired"]

MAX_ENCODER_TOKENS = 512
"""Source tokens admitted before one step: bounds how long the rows that decode already stand still."""
MAX_PADDING = 8
"""Tokens that a source may be padded by: about what one more call of the encoder costs."""

# Seconds that each waiting request adds to the wait of the next, before any was measured.
_INITIAL_PACE = 0.05
_PACE_SMOOTHING = 0.1
_MIN_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 30.0


def is_expired(request: Request, now: float) -> bool:
    """Whether the request's deadline has passed."""
    return request.deadline is not None and request.deadline <= now


def batches_of_similar_length(requests: Sequence[Request]) -> list[list[Request]]:
    """Split requests into encoder batches in which no source is padded by more than `MAX_PADDING`."""
    batches: list[list[Request]] = []
    for request in sorted(requests, key=lambda request: len(request.source), reverse=True):
        if batches and len(batches[-1][0].source) - len(request.source) <= MAX_PADDING:
            batches[-1].append(request)
        else:
            batches.append([request])
    return batches


class Scheduler:
    """A bounded queue of requests; not thread-safe.

    Args:
        max_queue: Requests that may wait.

    Raises:
        ValueError: `max_queue` is below 1.
    """

    def __init__(self, max_queue: int) -> None:
        if max_queue < 1:
            raise ValueError(f"max_queue must be at least 1, not {max_queue}")
        self._max_queue = max_queue
        # Oldest first, each with its place in the queue when it came; ordered, as a plain dict gets slow
        # when it is emptied from the front.
        self._waiting: OrderedDict[Request, int] = OrderedDict()
        self._waiting_slots = 0
        self._cancelled: list[Request] = []
        # No waiting request expires before this.
        self._earliest_deadline = math.inf
        self._pace = _INITIAL_PACE

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting_slots(self) -> int:
        """Slots that the waiting requests will take."""
        return self._waiting_slots

    @property
    def has_work(self) -> bool:
        """Whether a call of `admit` or `drop` may return a request."""
        return bool(self._waiting or self._cancelled)

    @property
    def retry_after(self) -> float:
        """Seconds until about half of a full queue is admitted, at the pace of late."""
        return min(max(self._pace * self._max_queue / 2, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            QueueFullError: `max_queue` requests wait already.
        """
        if len(self._waiting) >= self._max_queue:
            raise QueueFullError(len(self._waiting), self.retry_after)
        self._waiting[request] = len(self._waiting) + 1
        self._waiting_slots += request.options.beam_size
        if request.deadline is not None:
            self._earliest_deadline = min(self._earliest_deadline, request.deadline)

    def cancel(self, request: Request) -> None:
        """Stop waiting with this request, if it waits; the next `drop` returns it."""
        if request in self._waiting:
            self._remove(request)
            self._cancelled.append(request)

    def drop(self, now: float) -> list[Request]:
        """Take out the requests that were cancelled or have expired."""
        dropped, self._cancelled = self._cancelled, []
        if now >= self._earliest_deadline:
            expired = [request for request in self._waiting if is_expired(request, now)]
            for request in expired:
                self._remove(request)
            dropped += expired
            deadlines = (request.deadline for request in self._waiting)
            self._earliest_deadline = min((d for d in deadlines if d is not None), default=math.inf)
        return dropped

    def admit(
        self, held: Extent, fits: Callable[[Extent], bool], now: float, share: float = math.inf
    ) -> list[list[Request]]:
        """Take out the oldest requests that fit, as encoder batches.

        A request fits while there is room for its whole beam at its greatest length, whatever becomes of the
        others, and the sources admitted hold at most `MAX_ENCODER_TOKENS` together; where there is room, the
        oldest fits at any length.

        Args:
            held: What those admitted before may come to need.
            fits: Whether there is room for so much.
            now: The time.
            share: Slots at which to stop admitting; the last request may exceed it.
        """
        admitted: list[Request] = []
        slots = tokens = 0
        for request in self._waiting:
            if slots >= share:
                break
            slots += request.options.beam_size
            tokens += len(request.source)
            held = held.joined_by(request.options.beam_size, request.max_output_tokens, len(request.source))
            if not fits(held) or (admitted and tokens > MAX_ENCODER_TOKENS):
                break
            admitted.append(request)
        for request in admitted:
            pace = (now - request.arrived) / self._remove(request)
            self._pace += _PACE_SMOOTHING * (pace - self._pace)
        return batches_of_similar_length(admitted)

    def clear(self) -> list[Request]:
        """Take out everything."""
        requests = [*self._cancelled, *self._waiting]
        self._cancelled.clear()
        self._waiting.clear()
        self._waiting_slots = 0
        return requests

    def _remove(self, request: Request) -> int:
        """Take one waiting request out; returns the place that it came to."""
        self._waiting_slots -= request.options.beam_size
        return self._waiting.pop(request)
