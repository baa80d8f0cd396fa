"""Segments on their way through the engine, watched from asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol

from dragoman_server.engine.messages import DecodingOptions, Event, Failed, Finished, Progress, Request

__all__ = ["InFlight", "SegmentEngine", "submitted"]


class SegmentEngine(Protocol):
    """What the text pipeline asks of the engine."""

    def submit(self, request: Request) -> None:
        """Take a request, or raise; its events then come through `request.notify`."""

    def cancel(self, request: Request) -> None:
        """Give up a request; does nothing where it has ended."""


class InFlight:
    """One segment in the engine.

    The engine's thread reports through `call_soon_threadsafe`; all else happens on the event loop. Only the
    latest progress is kept, so that a slow reader holds no more than one hypothesis per segment.

    Args:
        source: Source ids, the end-of-sentence token included.
        options: How to search.
        deadline: On the clock of `time.monotonic`; `None` for none.
        wants_progress: Whether `progress` will be read.
        first_token: What the translation has to begin with.
        client: Who asks.
        may_loop: Whether it is not cut where it repeats itself.
    """

    def __init__(
        self,
        source: tuple[int, ...],
        options: DecodingOptions,
        deadline: float | None,
        wants_progress: bool = False,
        first_token: int | None = None,
        client: str = "",
        may_loop: bool = False,
    ) -> None:
        self.request = Request(
            source, options, self._notify, deadline, wants_progress, first_token, client, may_loop
        )
        self.ended_at = 0.0
        """When the outcome arrived, on the clock of `time.monotonic`."""
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._tokens: tuple[int, ...] = ()
        self._outcome: Finished | Failed | None = None

    @property
    def ended(self) -> bool:
        """Whether the outcome is known."""
        return self._outcome is not None

    async def result(self) -> Finished:
        """Wait for the translation.

        Raises:
            DragomanServerError: the engine gave the segment up.
        """
        while self._outcome is None:
            await self._change()
        if isinstance(self._outcome, Failed):
            raise self._outcome.error
        return self._outcome

    async def progress(self) -> AsyncIterator[tuple[int, ...]]:
        """The settled tokens of the best translation, each time they have grown, until the outcome."""
        seen = 0
        while self._outcome is None:
            await self._change()
            if len(self._tokens) > seen:
                seen = len(self._tokens)
                yield self._tokens

    async def _change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def _notify(self, event: Event) -> None:
        # The loop is closed only when the server has stopped: then nobody is left to be told.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._receive, event)

    def _receive(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._tokens = event.tokens
        else:
            self._outcome = event
            self.ended_at = time.monotonic()
            # The last event: request and flight need not hold each other until a garbage collection.
            self.request.notify = _nobody
        self._changed.set()


def _nobody(event: Event) -> None:
    """Nothing is told of what comes after the last event, which is nothing."""


@contextlib.contextmanager
def submitted(engine: SegmentEngine, flights: Sequence[InFlight]) -> Iterator[None]:
    """Hold segments in the engine: all or none.

    Where one is refused, those before it are withdrawn and the refusal is raised. On leaving, however that
    happens, what has not ended is cancelled.
    """
    accepted: list[InFlight] = []
    try:
        for flight in flights:
            engine.submit(flight.request)
            accepted.append(flight)
        yield
    finally:
        for flight in accepted:
            if not flight.ended:
                engine.cancel(flight.request)
