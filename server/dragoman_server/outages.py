"""Networks that answer nothing any more: found by their failures, and by their canaries to be well again.

A text may make every batch fail that it is in, and an ill-meaning caller may send it over and over. So
failures alone decide nothing: they have the model asked for a canary, which is no caller's text.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref

from dragoman_server.engine import Engine
from dragoman_server.loading import LoadedModel, probe

__all__ = ["Outages"]

_log = logging.getLogger(__name__)
_PROBE_SECONDS = 10.0
_PAUSE_SECONDS = 1.0


class Outages:
    """Knows which models are out of order; used from one event loop.

    Args:
        failed_batches: How many in a row are a reason to ask for a canary; 0: nothing is.
    """

    def __init__(self, failed_batches: int) -> None:
        self._failed_batches = failed_batches
        self._out: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._next: weakref.WeakKeyDictionary[Engine, float] = weakref.WeakKeyDictionary()
        """When an engine may be asked again, on the clock of `time.monotonic`."""
        self._probes: dict[Engine, asyncio.Task[None]] = {}
        """In progress."""

    def is_out(self, model: LoadedModel) -> bool:
        """Whether its last probe has failed."""
        return model.engine in self._out

    def look(self, model: LoadedModel) -> None:
        """Start a probe where one is due; to be called every now and then."""
        engine = model.engine
        suspicious = 0 < self._failed_batches <= engine.failed_batches
        if not (suspicious or engine in self._out) or engine in self._probes:
            return
        if time.monotonic() < self._next.get(engine, 0.0):
            return
        self._probes[engine] = task = asyncio.create_task(self._probe(model))
        task.add_done_callback(lambda _: self._probes.pop(engine))

    async def close(self) -> None:
        """Give up the probes in progress."""
        for task in [*self._probes.values()]:
            task.cancel()
            await asyncio.wait((task,))

    async def _probe(self, model: LoadedModel) -> None:
        engine, name = model.engine, model.served.description.name
        failed = engine.failed_batches
        try:
            works = await probe(model, _PROBE_SECONDS)
        finally:
            self._next[engine] = time.monotonic() + _PAUSE_SECONDS
        if works is False and engine not in self._out:
            self._out.add(engine)
            _log.error(
                "model %s: %d batches in a row have failed, and so does a canary; its health is NOT_SERVING "
                "until one succeeds",
                *(name, failed),
            )
        elif works and engine in self._out:
            self._out.discard(engine)
            _log.warning("model %s: a canary succeeds; its health is SERVING again", name)
