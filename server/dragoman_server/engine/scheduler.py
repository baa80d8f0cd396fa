"""Who waits, is admitted or refused: pure policy, without arrays, threads or a clock (time is an argument).

Clients take turns, those of one client are first in, first out, and while the next does not fit into the free
slots and memory, nobody passes it: every wait is bounded. While several clients come, none of them fills the
last slots of a worker, so that others need not wait for one of its beams to end; meanwhile others pass it.
What is admitted together is encoded in batches of similar length. Who cannot be done by its deadline is
refused before any work is spent on it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dragoman_server.engine.estimate import Estimate
from dragoman_server.engine.messages import DecodingOptions, Request
from dragoman_server.engine.runner import Extent
from dragoman_server.engine.waiting_line import WaitingLine
from dragoman_server.errors import DeadlineUnreachableError, QueueFullError

__all__ = [
    "MAX_ENCODER_TOKENS",
    "MAX_PADDING",
    "Occupancy",
    "Scheduler",
    "batches_of_similar_length",
    "is_expired",
]

MAX_ENCODER_TOKENS = 512
"""Source tokens admitted before one step: bounds how long the rows that decode already stand still."""
MAX_PADDING = 8
"""Tokens that a source may be padded by: about what one more call of the encoder costs."""

# Seconds that each waiting request adds to the wait of the next, before any was measured.
_INITIAL_PACE = 0.05
_MIN_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 30.0
_MARGIN = 1.5
"""Times its usual time that a request has to have left when it is admitted."""
_CONTENTION_SECONDS = 10.0
"""How long after requests of two clients it counts that there are two."""
_RESERVED_SHARE = 16
"""One slot of so many is not for those who hold others, and at least as many as a usual beam."""
_MIN_SHARED_SLOTS = 4 * DecodingOptions().beam_size
"""With fewer slots none is kept back: it would be too many of them."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Who holds the slots of one worker."""

    slots: int
    """Of the worker, taken or free."""
    by_client: Mapping[str, int] = field(default_factory=dict)
    """Slots that each client holds."""

    @property
    def client_cap(self) -> int:
        """Slots that one of several clients may hold."""
        if self.slots < _MIN_SHARED_SLOTS:
            return self.slots
        return self.slots - max(self.slots // _RESERVED_SHARE, DecodingOptions().beam_size)


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
        self._waiting = WaitingLine()
        self._gone: list[Request] = []
        # No waiting request expires before this.
        self._earliest_deadline = math.inf
        self._estimate = Estimate(_INITIAL_PACE)
        self._latest_client: str | None = None
        self._contended_until = -math.inf

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting_slots(self) -> int:
        """Slots that the waiting requests will take."""
        return self._waiting.slots

    @property
    def has_work(self) -> bool:
        """Whether a call of `admit` or `drop` may return a request."""
        return bool(self._waiting or self._gone)

    @property
    def retry_after(self) -> float:
        """Seconds until about half of a full queue is admitted, at the pace of late."""
        return min(max(self._estimate.pace * self._max_queue / 2, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)

    def add(self, request: Request) -> Request | None:
        """Queue a request.

        Returns:
            The one that has to make room for it in a full queue, the newest of the client that has most
            waiting; `None` where there is room.

        Raises:
            QueueFullError: `max_queue` requests wait already, and no client has many more of them.
            DeadlineUnreachableError: it would not be done in time.
        """
        self._require_time(request)
        displaced = None
        if len(self._waiting) >= self._max_queue:
            displaced = self._waiting.newest_of_heaviest()
            most, own = (self._waiting.waiting_of(one.client) for one in (displaced, request))
            if own + 1 >= most:
                raise QueueFullError(len(self._waiting), self.retry_after)
            self._waiting.remove(displaced)
        self._waiting.add(request)
        self._note_client(request)
        if request.deadline is not None:
            self._earliest_deadline = min(self._earliest_deadline, request.deadline)
        return displaced

    def _note_client(self, request: Request) -> None:
        if self._latest_client not in (None, request.client):
            self._contended_until = request.arrived + _CONTENTION_SECONDS
        self._latest_client = request.client

    def _require_time(self, request: Request) -> None:
        """Refuse who would be done too late; nobody where there is no line to wait in."""
        ahead = self._waiting.ahead_of(request.client)
        if request.deadline is None or not ahead:
            return
        needed = self._estimate.wait(ahead) + self._estimate.service(len(request.source))
        if request.arrived + needed > request.deadline:
            raise DeadlineUnreachableError(self.retry_after)

    def cancel(self, request: Request) -> None:
        """Stop waiting with this request, if it waits; the next `drop` returns it."""
        if request in self._waiting:
            self._waiting.remove(request)
            self._gone.append(request)

    def finished(self, request: Request, seconds: float) -> None:
        """Note how long a request took from its admission to its end."""
        self._estimate.finished(len(request.source), seconds)

    def drop(self, now: float) -> list[Request]:
        """Take out the requests that were cancelled, have expired, or were found too late by `admit`."""
        dropped, self._gone = self._gone, []
        if now >= self._earliest_deadline:
            expired = [request for request in self._waiting if is_expired(request, now)]
            for request in expired:
                self._waiting.remove(request)
            dropped += expired
            deadlines = (request.deadline for request in self._waiting)
            self._earliest_deadline = min((d for d in deadlines if d is not None), default=math.inf)
        return dropped

    def admit(
        self,
        held: Extent,
        fits: Callable[[Extent], bool],
        now: float,
        share: float = math.inf,
        occupancy: Occupancy | None = None,
    ) -> list[list[Request]]:
        """Take out the next requests that fit, as encoder batches.

        A request fits while there is room for its whole beam at its greatest length, whatever becomes of the
        others, and the sources admitted hold at most `MAX_ENCODER_TOKENS` together; where there is room, the
        first fits at any length. Who is too late now is not admitted beside others, but dropped.

        Args:
            held: What those admitted before may come to need.
            fits: Whether there is room for so much.
            now: The time.
            share: Slots at which to stop admitting; the last request may exceed it.
            occupancy: Who holds the slots; `None` where nobody is kept from the last ones. A client that
                holds none may have them in any case.
        """
        cap: float = math.inf
        if occupancy is not None and now < self._contended_until:
            cap = occupancy.client_cap
        holds = Counter({} if occupancy is None else occupancy.by_client)
        at_cap: set[str] = set()
        admitted: list[Request] = []
        slots = tokens = 0
        while slots < share and (request := self._waiting.first(at_cap)) is not None:
            if (held.rows or admitted) and self._is_late(request, now):
                self._waiting.remove(request)
                self._gone.append(request)
                continue
            if 0 < holds[request.client] > cap - request.options.beam_size:
                at_cap.add(request.client)
                continue
            slots += request.options.beam_size
            tokens += len(request.source)
            held = held.joined_by(request.options.beam_size, request.max_output_tokens, len(request.source))
            if not fits(held) or (admitted and tokens > MAX_ENCODER_TOKENS):
                break
            admitted.append(request)
            holds[request.client] += request.options.beam_size
            self._estimate.admitted(now - request.arrived, place=self._waiting.serve(request))
        return batches_of_similar_length(admitted)

    def _is_late(self, request: Request, now: float) -> bool:
        needed = _MARGIN * self._estimate.service(len(request.source))
        return request.deadline is not None and now + needed > request.deadline

    def clear(self) -> list[Request]:
        """Take out everything."""
        requests = [*self._gone, *self._waiting]
        self._gone.clear()
        self._waiting = WaitingLine()
        return requests
