"""The scheduler behind a lock: where callers' threads and the workers' threads meet."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from dragoman_server.engine.messages import Request
from dragoman_server.engine.runner import Extent
from dragoman_server.engine.scheduler import Occupancy, Scheduler
from dragoman_server.errors import ShuttingDownError

__all__ = ["Intake", "SharedQueue"]


@dataclass(frozen=True, slots=True)
class Intake:
    """What a worker takes before a step."""

    dropped: list[Request]
    """Cancelled, expired, or too late to be done in time, while they waited."""
    batches: list[list[Request]]
    """To be encoded, one batch after the other."""


class SharedQueue:
    """The waiting queue of all workers, and the count of requests that are still owed an answer.

    Args:
        scheduler: The policy, used through this queue alone.
        workers: How many share the work; each goes by its number, from 0.
    """

    def __init__(self, scheduler: Scheduler, workers: int = 1) -> None:
        self._scheduler = scheduler
        self._held = [0] * workers
        lock = threading.Lock()
        self._work = threading.Condition(lock)
        self._all_answered = threading.Condition(lock)
        self._unanswered = 0
        self._holders: dict[Request, int | None] = {}
        """Who is owed an answer, and the worker that has it; `None` while it waits."""
        self._accepting = True
        self._stopped = False

    @property
    def waiting(self) -> int:
        """Requests that wait for slots."""
        with self._work:
            return len(self._scheduler)

    @property
    def unanswered(self) -> int:
        """Requests accepted and not answered yet, waiting or decoding."""
        with self._work:
            return self._unanswered

    @property
    def retry_after(self) -> float:
        """Seconds after which to try again what is refused."""
        with self._work:
            return self._scheduler.retry_after

    def put(self, request: Request) -> Request | None:
        """Accept a request.

        Returns:
            The one that has to make room for it, and is owed an answer; see `Scheduler.add`.

        Raises:
            ShuttingDownError: after `drain` or `stop`.
            QueueFullError: too many wait.
            DeadlineUnreachableError: it would not be done in time.
        """
        with self._work:
            if not self._accepting:
                raise ShuttingDownError("the server is shutting down")
            displaced = self._scheduler.add(request)
            self._unanswered += 1
            self._holders[request] = None
            self._work.notify()
            return displaced

    def finished(self, request: Request, seconds: float) -> None:
        """Note how long a request took from its admission to its end."""
        with self._work:
            self._scheduler.finished(request, seconds)

    def cancel(self, request: Request) -> None:
        """Mark a request as cancelled, wherever it is."""
        with self._work:
            request.cancelled = True
            self._scheduler.cancel(request)
            self._work.notify()

    def wait_for_work(self, worker: int) -> bool:
        """Sleep, holding no slots, until `take` may return something; False: stop instead.

        No waiting request needs a wake-up at its deadline: whoever sleeps here has all its slots free, so
        the oldest request is admitted as soon as it comes.
        """
        with self._work:
            self._held[worker] = 0
            self._work.wait_for(lambda: self._stopped or self._scheduler.has_work)
            return not self._stopped

    @property
    def stopped(self) -> bool:
        """Whether the workers should end."""
        return self._stopped

    def has_work_for(self, worker: int, held: int) -> bool:
        """Whether `take` may return something for a worker that holds so many slots."""
        # Before every step, so without the lock: both are single operations, and `take` looks again.
        self._held[worker] = held
        return self._scheduler.has_work

    def take(
        self,
        worker: int,
        held: Extent,
        fits: Callable[[Extent], bool],
        now: float,
        occupancy: Occupancy | None = None,
    ) -> Intake:
        """Take what a worker has to deal with before its next step.

        Workers fill up evenly: two half-full batches on two cores are faster than one full batch on one. The
        worker that holds least gets something whenever anything fits, so nobody waits longer than that.

        Args:
            worker: Its number.
            held: What its requests may come to need.
            fits: Whether it has room for so much.
            now: The time.
            occupancy: Who holds its slots; see `Scheduler.admit`.
        """
        with self._work:
            self._held[worker] = held.rows
            wanted = sum(self._held) + self._scheduler.waiting_slots
            share = math.ceil(wanted / len(self._held)) - held.rows
            batches = self._scheduler.admit(held, fits, now, share, occupancy)
            self._held[worker] += sum(request.options.beam_size for batch in batches for request in batch)
            dropped = self._scheduler.drop(now)
            self._holders |= dict.fromkeys(itertools.chain(dropped, *batches), worker)
            return Intake(dropped, batches)

    def take_all(self) -> list[Request]:
        """Take everything that waits."""
        with self._work:
            return self._scheduler.clear()

    def claim(self, request: Request) -> bool:
        """Take it upon oneself to answer an accepted request; False: somebody has done so before."""
        with self._work:
            if request not in self._holders:
                return False
            del self._holders[request]
            return True

    def held_by(self, worker: int) -> list[Request]:
        """What that worker has taken, and nobody has claimed."""
        with self._work:
            return [request for request, holder in self._holders.items() if holder == worker]

    def answered(self) -> None:
        """Note that one claimed request got its last event."""
        with self._all_answered:
            self._unanswered -= 1
            if self._unanswered == 0:
                self._all_answered.notify_all()

    def drain(self, timeout: float | None) -> bool:
        """Accept nothing more and wait until all is answered; False: the time was too short."""
        with self._all_answered:
            self._accepting = False
            return self._all_answered.wait_for(lambda: self._unanswered == 0, timeout)

    def stop(self) -> None:
        """Accept nothing more and have the workers end after their current step."""
        with self._work:
            self._accepting = False
            self._stopped = True
            self._work.notify_all()
