"""Counts the calls in progress, so that a server, or a model's version, can go when the last has ended."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator

from dragoman_server.errors import ShuttingDownError, TooManyCallsError

__all__ = ["CallCounter"]

_RETRY_SECONDS = 1.0


class CallCounter:
    """Calls in progress; used from the event loop alone.

    Args:
        limit: The most that may be.
    """

    def __init__(self, limit: int = sys.maxsize) -> None:
        self._limit = limit
        self._active = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Calls in progress."""
        return self._active

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Count a call while it lasts.

        Raises:
            ShuttingDownError: the server drains.
            TooManyCallsError: as many as there may be are in progress.
        """
        if self._draining:
            raise ShuttingDownError("the server is shutting down")
        if self._active >= self._limit:
            raise TooManyCallsError(self._active, _RETRY_SECONDS)
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if self._active == 0:
                self._idle.set()

    async def drain(self, timeout: float) -> bool:
        """Take no more calls; wait for those in progress, at most `timeout` seconds; whether all ended."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True
