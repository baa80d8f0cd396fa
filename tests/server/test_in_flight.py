"""Segments on their way through the engine."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from dragoman_server.engine import DecodingOptions
from dragoman_server.in_flight import InFlight, submitted


@pytest.mark.parametrize("end", ["finished", "cancelled"])
def test_what_has_ended_goes_without_a_garbage_collection(engine: Any, end: str) -> None:
    engine.holding = end == "cancelled"

    async def body() -> weakref.ref[Any]:
        flight = InFlight((5, 3), DecodingOptions(), deadline=None)
        with submitted(engine, [flight]):
            if end == "finished":
                await flight.result()
        await asyncio.sleep(0)
        assert flight.ended
        engine.submitted.clear()
        engine.cancelled.clear()
        return weakref.ref(flight)

    gc.disable()
    try:
        assert asyncio.run(body())() is None
    finally:
        gc.enable()
