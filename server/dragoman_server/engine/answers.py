"""The last event of every request: sent once, whoever sends it, and counted."""

from __future__ import annotations

import logging

from dragoman_server.engine.messages import Event, Failed, Finished, Request
from dragoman_server.engine.shared_queue import SharedQueue
from dragoman_server.engine.telemetry import Telemetry, finish_record

__all__ = ["Answers"]

_log = logging.getLogger(__name__)


class Answers:
    """Tells callers of their requests; thread-safe, as workers and the engine's check may answer at once.

    Args:
        queue: Knows who is owed an answer.
        telemetry: Is told of every end.
    """

    def __init__(self, queue: SharedQueue, telemetry: Telemetry) -> None:
        self._queue = queue
        self._telemetry = telemetry

    def end(self, request: Request, event: Finished | Failed, row_steps: int = 0) -> None:
        """Send a request's last event, unless it has got one; whoever has got it finds it counted.

        Args:
            request: Accepted.
            event: What came of it.
            row_steps: Rows that decode steps ran for it, summed over the steps.
        """
        if not self._queue.claim(request):
            return
        self._telemetry.finished(finish_record(request, event, row_steps))
        self.tell(request, event)
        self._queue.answered()

    def tell(self, request: Request, event: Event) -> None:
        """Send an event; a caller who cannot be told gives the request up."""
        try:
            request.notify(event)
        except Exception:
            _log.exception("a caller could not be told of an event; its request is cancelled")
            request.cancelled = True
