"""Messages of a stream, each sent within a bounded time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from dragoman_server.errors import SlowReaderError

__all__ = ["StreamWriter"]


class StreamWriter:
    """Writes to one call; flow control blocks a write while the caller does not read.

    gRPC can neither give up a write that has begun nor send a status beside it. So the write goes on in a
    task of its own: the handler lets go of what it holds when the time is up, and the caller is told why as
    soon as it reads again. A caller that never does is left with that one message until its deadline, or the
    end of its connection.

    Args:
        context: The call's.
        seconds: That a message may take.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], seconds: float) -> None:
        self._context = context
        self._seconds = seconds
        self._writing: asyncio.Future[None] | None = None

    async def write(self, message: Message) -> None:
        """Send one message.

        Raises:
            SlowReaderError: the caller did not take it in time.
        """
        self._writing = asyncio.ensure_future(self._context.write(message))
        try:
            done, _ = await asyncio.wait((self._writing,), timeout=self._seconds)
        except BaseException:
            self._writing.cancel()
            raise
        if not done:
            raise SlowReaderError(f"the reply was not read for {self._seconds:g} s")
        self._writing.result()

    async def settle(self) -> None:
        """Wait for the message that was not taken in time; until then the call takes no status."""
        if self._writing is not None:
            with contextlib.suppress(grpc.aio.BaseError):
                await self._writing
