"""Counts the calls in progress, so that a server, or a model's version, can go when the last has ended."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Iterator

from dragoman_server.errors import NotReadyError, ShuttingDownError, TooManyCallsError

__all__ = ["CallCounter"]

_RETRY_SECONDS = 1.0


class CallCounter:
    """Calls in progress; used from the event loop alone.

    Args:
        limit: The most that may be.
        ready: Whether calls are taken at once, or after `open`.
    """

    def __init__(self, limit: int = sys.maxsize, *, ready: bool = True) -> None:
        self._limit = limit
        self._ready = ready
        self._active = 0
        self._draining = False
        self._refused_at = -math.inf
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Calls in progress."""
        return self._active

    @property
    def ready(self) -> bool:
        """Whether it has been opened."""
        return self._ready

    def open(self) -> None:
        """Take calls from now on."""
        self._ready = True

    def require_ready(self) -> None:
        """Let pass what comes once the models are loaded.

        Raises:
            NotReadyError: they are not yet.
        """
        if not self._ready:
            raise NotReadyError("the server is loading its models; try again shortly")

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Count a call while it lasts.

        Raises:
            NotReadyError: no calls are taken yet.
            ShuttingDownError: the server drains.
            TooManyCallsError: as many as there may be are in progress.
        """
        self.require_ready()
        if self._draining:
            self._refused_at = time.monotonic()
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
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def quiet(self, seconds: float, at_most: float) -> None:
        """Wait until no call was refused for so many seconds, `at_most` in all."""
        end = time.monotonic() + at_most
        while (now := time.monotonic()) < min(end, self._refused_at + seconds):
            await asyncio.sleep(min(end, self._refused_at + seconds) - now)
