"""The loop that decodes on one runner: schedule, run, search, update."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dragoman_server.engine.answers import Answers
from dragoman_server.engine.messages import Failed, Finished, Progress, Request, Timing
from dragoman_server.engine.quarantine import Quarantine, Suspect
from dragoman_server.engine.runner import Extent, FloatArray, IntArray, Runner
from dragoman_server.engine.scheduler import Occupancy, is_expired
from dragoman_server.engine.search import Beam, Search
from dragoman_server.engine.shared_queue import SharedQueue
from dragoman_server.engine.slots import SlotPool
from dragoman_server.engine.telemetry import EncodeRecord, StepRecord, Telemetry
from dragoman_server.errors import (
    CancelledError,
    DeadlineError,
    DeadlineUnreachableError,
    EngineError,
    ShuttingDownError,
)

__all__ = ["Worker"]

_log = logging.getLogger(__name__)

_TELL_SECONDS = 0.05
"""How long the telemetry may go without being told of the latest steps."""
_POSITIONS = 16
"""Positions for which room is reserved at a time."""


@dataclass(eq=False, slots=True)
class _Decoding:
    """A request that holds slots."""

    request: Request
    beam: Beam
    admitted: float
    encoded: float
    progress: int
    """Tokens that the caller was told already."""
    first_step: int
    """How many steps there had been before."""


class Worker:
    """Steps the requests that one runner holds; they join and leave at every step.

    Where a step fails, those who shared it are decoded again, and the guilty one alone is given up. All but
    the properties belongs to the one thread that calls `run`, or `step`.

    Args:
        runner: Used by this worker alone.
        queue: Shared with the other workers.
        telemetry: Is told of every encoder run, step and end of a request.
        number: Which of the queue's workers this is.
        bos_id: The token that starts every output.
        eos_id: The token that ends an output.
        loop_tokens: Tokens over which a translation that repeats one phrase is cut; 0 for never.
        clock: Seconds, on the clock of the requests' deadlines.
    """

    def __init__(
        self,
        runner: Runner,
        queue: SharedQueue,
        telemetry: Telemetry,
        *,
        number: int = 0,
        bos_id: int,
        eos_id: int,
        loop_tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._queue = queue
        self._telemetry = telemetry
        self._answers = Answers(queue, telemetry)
        self._number = number
        self._clock = clock
        limits = runner.limits
        self._vocabulary_size = limits.vocabulary_size
        self._slots = SlotPool(limits.max_rows)
        self._search = Search(limits.max_rows, limits.max_target_tokens, bos_id, eos_id, loop_tokens)
        self._decoding: list[_Decoding] = []
        self._quarantine = Quarantine()
        self._steps = 0
        self._untold: list[StepRecord] = []
        self._told = 0.0
        self._widest = 1
        """The greatest beam size of those who decode."""
        self._reserved = 0
        """Positions that the runner has room for; 0 after a change of those who decode."""
        self._busy_since: float | None = None

    @property
    def slots_in_use(self) -> int:
        """Slots that requests hold."""
        return self._slots.in_use

    @property
    def busy_since(self) -> float | None:
        """When the step in progress began; `None` between two steps."""
        return self._busy_since

    def run(self) -> None:
        """Step until the queue is stopped; then fail what is left."""
        while not self._queue.stopped:
            if self._decoding or self._quarantine.is_open or self._queue.wait_for_work(self._number):
                self.step()
        for decoding in list(self._decoding):
            self._leave(decoding, Failed(_shut_down()))
        for request in [*self._quarantine.requests, *self._queue.take_all()]:
            self._answers.end(request, Failed(_shut_down()))
        self._tell_steps()

    def step(self) -> None:
        """Take in what waits, run one decode step, and answer what is finished."""
        self._busy_since = self._clock()
        self._step()
        self._busy_since = None

    def _step(self) -> None:
        self._schedule()
        if not self._decoding:
            return
        try:
            log_probs, token_ids = self._run()
            self._extend(log_probs, token_ids)
            self._telemetry.batch(failed=not self._decoding)
        except Exception as error:
            self._telemetry.batch(failed=True)
            _log.exception("a decode step of %d requests failed", len(self._decoding))
            self._isolate(error)
        self._update()

    def _schedule(self) -> None:
        """Let go of who is gone, and encode who is admitted."""
        now = self._clock()
        for decoding in list(self._decoding):
            if _is_gone(decoding.request, now):
                self._leave(decoding, Failed(_why_gone(decoding.request)))
        for request in self._quarantine.drop(lambda request: _is_gone(request, now)):
            self._answers.end(request, Failed(_why_gone(request)))
        if self._quarantine.is_open and not self._decoding:
            for suspect in self._quarantine.next_group():
                self._encode([suspect.request], suspect.admitted, suspect.progress)
        if self._queue.has_work_for(self._number, self._slots.in_use):
            self._take_in(now)

    def _take_in(self, now: float) -> None:
        """Encode who is admitted of those who wait, and answer who waits in vain."""
        # Who is in quarantine shares no step with anybody who is not.
        fits = _no_room if self._quarantine.is_open else self._runner.fits
        intake = self._queue.take(self._number, self._promised(), fits, now, self._occupancy())
        for request in intake.dropped:
            # Neither cancelled nor expired: it would not be done in time.
            late = DeadlineUnreachableError(self._queue.retry_after)
            self._answers.end(request, Failed(_why_gone(request) if _is_gone(request, now) else late))
        for batch in intake.batches:
            self._encode(batch, now)

    def _isolate(self, error: Exception) -> None:
        """Give up the request whose step has failed; of several, find out which."""
        if len(self._decoding) == 1:
            self._leave(self._decoding[0], Failed(_engine_error("the decode step failed", error)))
            return
        suspects = [Suspect(one.request, one.admitted, one.progress) for one in self._decoding]
        for decoding in list(self._decoding):
            self._release(decoding)
        self._quarantine.add(suspects)

    def _promised(self) -> Extent:
        """What the requests that decode may come to need: each its whole beam at its greatest length."""
        requests = [decoding.request for decoding in self._decoding]
        return Extent(
            self._slots.in_use,
            max((request.max_output_tokens for request in requests), default=0),
            max((len(request.source) for request in requests), default=0),
        )

    def _occupancy(self) -> Occupancy:
        by_client: Counter[str] = Counter()
        for decoding in self._decoding:
            by_client[decoding.request.client] += decoding.beam.size
        return Occupancy(self._slots.size, by_client)

    def _used(self) -> Extent:
        """What they need for the next step, gaps between their slots included."""
        sources = (len(decoding.request.source) for decoding in self._decoding)
        return Extent(self._slots.span, 1 + self._search.longest(), max(sources, default=0))

    def _encode(self, batch: list[Request], admitted: float, progress: int = 0) -> None:
        sources = [request.source for request in batch]
        used = self._used().joined_by(
            sum(request.options.beam_size for request in batch), 1, max(map(len, sources))
        )
        if not self._runner.fits(used):
            self._close_gaps()  # without them it does fit: it was promised
        slots = [self._slots.take(request.options.beam_size) for request in batch]
        started = self._clock()
        try:
            self._runner.reserve(replace(used, rows=self._slots.span))
            self._runner.encode(sources, slots)
        except Exception as error:
            self._telemetry.batch(failed=True)
            _log.exception("encoding %d requests failed", len(batch))
            for held in slots:
                self._slots.release(held)
            if len(batch) == 1:
                self._answers.end(batch[0], Failed(_engine_error("the encoder failed", error)))
                return
            for request in batch:
                self._encode([request], admitted)
            return
        ended = self._clock()
        lengths = [len(source) for source in sources]
        padding = len(batch) * max(lengths) - sum(lengths)
        self._telemetry.encoded(EncodeRecord(len(batch), sum(lengths), padding, ended - started))
        for request, held in zip(batch, slots, strict=True):
            beam = self._search.start(request, held)
            self._reserved = 0
            self._decoding.append(_Decoding(request, beam, admitted, ended, progress, self._steps))

    def _run(self) -> tuple[FloatArray, IntArray]:
        """Step the rows; returns log-probabilities and ids of their continuations, `[rows, k]` each."""
        started = self._clock()
        self._compact()
        rows = self._slots.in_use
        self._reserve()
        tokens, lengths = self._search.inputs(rows)
        idle = self._search.idle(rows) if self._widest > 1 else 0
        self._steps += 1
        result = self._runner.step(tokens, lengths, min(2 * self._widest, self._vocabulary_size))
        self._untold.append(StepRecord(rows, idle, self._clock() - started))
        return result

    def _reserve(self) -> None:
        """Make room for the next step, and for some after it, where there may be too little or too much."""
        if self._reserved > self._search.longest():
            return
        self._widest = max(decoding.beam.size for decoding in self._decoding)
        used = self._used()
        steps = -(-used.positions // _POSITIONS)
        self._reserved = min(steps * _POSITIONS, self._runner.limits.max_target_tokens)
        self._runner.reserve(replace(used, positions=self._reserved))

    def _tell_steps(self) -> None:
        if self._untold:
            self._telemetry.stepped(self._untold)
            self._untold = []

    def _compact(self) -> None:
        """Move the last rows into the gaps: to copy a row once is cheaper than to run a gap once."""
        moves = self._slots.compact()
        copies = self._search.relocate((decoding.beam for decoding in self._decoding), moves)
        if copies:
            self._runner.copy(copies)

    def _close_gaps(self) -> None:
        """Compact; where a row cannot be moved, those who decode are tried again."""
        try:
            self._compact()
        except Exception as error:
            _log.exception("moving the rows of %d requests failed", len(self._decoding))
            self._isolate(error)

    def _extend(self, log_probs: FloatArray, token_ids: IntArray) -> None:
        """Extend the beams and bring the slots in line with them."""
        self._fail_without_numbers(log_probs)
        beams = [decoding.beam for decoding in self._decoding]
        copies = self._search.advance(beams, log_probs, token_ids)
        if copies:
            self._runner.copy(copies)

    def _fail_without_numbers(self, log_probs: FloatArray) -> None:
        """Fail the requests whose rows hold NaN, and no others."""
        # A row's best is NaN where any of it is; Python's own sum, as numpy's takes longer to fetch.
        if not math.isnan(sum(log_probs[:, 0].tolist())):
            return
        broken = set(np.nonzero(np.isnan(log_probs[:, 0]))[0].tolist())
        for decoding in list(self._decoding):
            guilty = broken.intersection(self._search.live(decoding.beam))
            if guilty:
                position = len(self._search.tokens(guilty.pop()))
                _log.error("the network answered NaN at output position %d", position)
                self._leave(decoding, Failed(EngineError("the network answered NaN")))

    def _update(self) -> None:
        """Answer what is finished and report progress."""
        now = self._clock()
        if now - self._told > _TELL_SECONDS:
            self._told = now
            self._tell_steps()
        for decoding in list(self._decoding):
            if decoding.beam.done:
                self._queue.finished(decoding.request, now - decoding.admitted)
                self._leave(decoding, _result(decoding, now))
            elif decoding.request.wants_progress:
                self._report(decoding)

    def _report(self, decoding: _Decoding) -> None:
        tokens = self._search.settled(decoding.beam)
        if len(tokens) > decoding.progress:
            decoding.progress = len(tokens)
            self._answers.tell(decoding.request, Progress(tokens))

    def _leave(self, decoding: _Decoding, event: Finished | Failed) -> None:
        self._release(decoding)
        self._tell_steps()  # whoever is answered finds them counted
        row_steps = decoding.beam.size * (self._steps - decoding.first_step)
        self._answers.end(decoding.request, event, row_steps)

    def _release(self, decoding: _Decoding) -> None:
        self._reserved = 0
        self._decoding.remove(decoding)
        self._search.release(decoding.beam)
        self._slots.release(decoding.beam.slots)


def _no_room(extent: Extent) -> bool:
    return False


def _is_gone(request: Request, now: float) -> bool:
    return request.cancelled or is_expired(request, now)


def _result(decoding: _Decoding, now: float) -> Finished | Failed:
    hypotheses = decoding.beam.hypotheses
    if not hypotheses:
        return Failed(EngineError("the network gave every continuation a probability of zero"))
    timing = Timing(
        queue=decoding.admitted - decoding.request.arrived,
        encode=decoding.encoded - decoding.admitted,
        decode=now - decoding.encoded,
    )
    return Finished(hypotheses, timing)


def _why_gone(request: Request) -> Exception:
    if request.cancelled:
        return CancelledError("the caller cancelled the request")
    return DeadlineError("the request's deadline passed before its translation was complete")


def _shut_down() -> ShuttingDownError:
    return ShuttingDownError("the server shut down before the translation was complete")


def _engine_error(message: str, cause: Exception) -> EngineError:
    error = EngineError(message)
    error.__cause__ = cause
    return error
