"""The engine as the service sees it: submit, cancel, look, drain, close."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from dragoman_server.engine.answers import Answers
from dragoman_server.engine.messages import Failed, Request, output_limit
from dragoman_server.engine.runner import Extent, Runner, RunnerLimits
from dragoman_server.engine.scheduler import Scheduler
from dragoman_server.engine.shared_queue import SharedQueue
from dragoman_server.engine.telemetry import EngineStats, Observer, Telemetry
from dragoman_server.engine.worker import Worker
from dragoman_server.errors import BusyError, InvalidRequestError, QueueFullError, StalledError

__all__ = ["Engine"]

_log = logging.getLogger(__name__)
_JOIN_SECONDS = 0.1


class Engine:
    """Translates token ids on one thread per runner; every method may be called from any thread.

    Use as a context manager, or call `close`.

    Args:
        runners: At least one; of one size. They share the waiting queue; each keeps its own slots.
        max_queue: Requests that may wait for slots before further ones are refused.
        bos_id: The token that starts every output.
        eos_id: The token that ends an output.
        stall_seconds: How long one step may take, its encoder runs included, before `check` gives it up.
        loop_tokens: Tokens over which a translation that repeats one phrase is cut; 0 for never.
        observer: Is told of every encoder run, step and end of a request.

    Raises:
        ValueError: there is no runner, or `max_queue` is below 1.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        *,
        max_queue: int,
        bos_id: int,
        eos_id: int,
        stall_seconds: float = math.inf,
        loop_tokens: int = 0,
        observer: Observer | None = None,
    ) -> None:
        if not runners:
            raise ValueError("an engine needs at least one runner")
        self._slots = sum(runner.limits.max_rows for runner in runners)
        self._limits = _limits_of_all(runners)
        self._runners = tuple(runners)
        self._telemetry = Telemetry(observer)
        self._queue = SharedQueue(Scheduler(max_queue), workers=len(runners))
        self._answers = Answers(self._queue, self._telemetry)
        self._stall_seconds = stall_seconds
        self._stalled: frozenset[int] = frozenset()
        self._workers = [
            Worker(
                *(runner, self._queue, self._telemetry),
                number=number,
                bos_id=bos_id,
                eos_id=eos_id,
                loop_tokens=loop_tokens,
            )
            for number, runner in enumerate(runners)
        ]
        # Daemons, so that an engine left open does not keep the process alive.
        self._threads = [
            threading.Thread(target=worker.run, name=f"dragoman-decode-{number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def limits(self) -> RunnerLimits:
        """What a request may ask for: every runner can hold it."""
        return self._limits

    @property
    def workers(self) -> int:
        """Threads that decode, each on a runner of its own."""
        return len(self._workers)

    @property
    def stalled_workers(self) -> int:
        """How many workers the last `check` found standing still."""
        return len(self._stalled)

    @property
    def failed_batches(self) -> int:
        """How many batches in a row have failed in all their rows: the network may be of no use any more."""
        return self._telemetry.failed_batches

    def submit(self, request: Request) -> None:
        """Accept a request; its `notify` then gets exactly one `Finished` or `Failed`.

        Sets the request's `arrived` and `max_output_tokens`.

        Raises:
            InvalidRequestError: `source` or `beam_size` does not fit the runners, or their memory.
            QueueFullError: too many requests wait; it says when to retry.
            DeadlineUnreachableError: it would not be done by its deadline; the same.
            ShuttingDownError: after `drain` or `close`.
            StalledError: every worker stands still.
        """
        if self.stalled_workers == self.workers:
            raise _stalled()
        self._check(request)
        bounds = [output_limit(len(request.source)), self._limits.max_target_tokens]
        if request.options.max_output_tokens is not None:
            bounds.append(request.options.max_output_tokens)
        request.max_output_tokens = min(bounds)
        self._check_memory(request)
        request.arrived = time.monotonic()
        try:
            displaced = self._queue.put(request)
        except BusyError as error:
            self._telemetry.refused(error)
            raise
        if displaced is not None:
            reason = QueueFullError(self._queue.waiting, self._queue.retry_after)
            self._answers.end(displaced, Failed(reason))

    def cancel(self, request: Request) -> None:
        """Give a request up: its slots are free before the next step.

        Its last event is `Failed(CancelledError)`, unless another was already on its way. To cancel twice,
        or after the end, does nothing.
        """
        self._queue.cancel(request)

    def check(self) -> None:
        """Look for workers that stand still; to be called every now and then.

        What such a worker holds fails at once. What waits is left to the others; where all stand still, it
        fails too. A worker that comes back finds its requests cancelled, and works on.
        """
        stalled = frozenset(number for number in range(self.workers) if self._stands_still(number))
        if stalled != self._stalled:
            _log.error("%d of %d workers stand still: %s", len(stalled), self.workers, sorted(stalled))
        self._stalled = stalled
        lost = [request for number in stalled for request in self._queue.held_by(number)]
        if len(stalled) == self.workers:
            lost += self._queue.take_all()
        for request in lost:
            request.cancelled = True
            self._answers.end(request, Failed(_stalled()))

    def stats(self) -> EngineStats:
        """The queue, the slots and the totals."""
        return EngineStats(
            waiting=self._queue.waiting,
            unanswered=self._queue.unanswered,
            slots_in_use=sum(worker.slots_in_use for worker in self._workers),
            slots=self._slots,
            stalled_workers=self.stalled_workers,
            totals=self._telemetry.totals,
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Accept nothing more, and wait until everything accepted is answered.

        Args:
            timeout: Seconds; `None` waits without bound.

        Returns:
            Whether all is answered; `False`: the time was too short, and work goes on.
        """
        return self._queue.drain(timeout)

    def close(self) -> None:
        """Stop the threads after their current step; what is left gets `Failed(ShuttingDownError)`.

        A worker that stands still is not waited for. Not to be called from a `notify`, which runs on one of
        these threads.
        """
        self._queue.stop()
        for number, thread in enumerate(self._threads):
            while thread.is_alive() and not self._stands_still(number):
                thread.join(_JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _stands_still(self, number: int) -> bool:
        busy_since = self._workers[number].busy_since
        too_long = busy_since is not None and time.monotonic() - busy_since > self._stall_seconds
        return too_long or not self._threads[number].is_alive()

    def _check(self, request: Request) -> None:
        length, limits = len(request.source), self._limits
        if length == 0:
            raise InvalidRequestError("source", "is empty")
        if length > limits.max_source_tokens:
            raise InvalidRequestError(
                "source", f"has {length} tokens; the model takes at most {limits.max_source_tokens}"
            )
        if request.options.beam_size > limits.max_rows:
            raise InvalidRequestError(
                "beam_size", f"is {request.options.beam_size}; this server's limit is {limits.max_rows}"
            )

    def _check_memory(self, request: Request) -> None:
        beam_size = request.options.beam_size
        needed = Extent(beam_size, request.max_output_tokens, len(request.source))
        if not all(runner.fits(needed) for runner in self._runners):
            raise InvalidRequestError(
                "beam_size",
                f"{beam_size} hypotheses of up to {request.max_output_tokens} tokens, for a source of "
                f"{len(request.source)}, need more memory than this server gives them; ask for a smaller "
                "beam or send shorter sentences",
            )


def _limits_of_all(runners: Sequence[Runner]) -> RunnerLimits:
    limits = [runner.limits for runner in runners]
    return RunnerLimits(
        max_rows=min(limit.max_rows for limit in limits),
        max_source_tokens=min(limit.max_source_tokens for limit in limits),
        max_target_tokens=min(limit.max_target_tokens for limit in limits),
        vocabulary_size=min(limit.vocabulary_size for limit in limits),
    )


def _stalled() -> StalledError:
    return StalledError("the network does not come back; the server is no use until it does, or is restarted")
