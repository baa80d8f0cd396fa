"""Translations by the serving engine, for the gate."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dragoman_server.engine.engine import Engine
from dragoman_server.engine.messages import DecodingOptions, Event, Finished, Hypothesis, Request
from dragoman_server.engine.runner import Runner
from dragoman_server.special_ids import SpecialIds

__all__ = ["engine_translations"]


def engine_translations(
    runner: Runner,
    sources: Sequence[Sequence[int]],
    special: SpecialIds,
    options: DecodingOptions,
    *,
    at_once: bool,
    first_token: int | None = None,
) -> list[Hypothesis | None]:
    """The best translation of each source; None where the engine failed.

    Args:
        runner: With slots for a beam at least.
        sources: Source ids, end-of-sentence included.
        special: Ids of the control symbols.
        options: Of the search.
        first_token: What every translation has to begin with.
        at_once: Submit all and let them share steps, or each when the one before is answered.
    """
    found: list[Hypothesis | None] = [None] * len(sources)
    with Engine([runner], max_queue=len(sources), bos_id=special.bos, eos_id=special.eos) as engine:
        for place, source in enumerate(sources):
            answered = threading.Event()

            def notify(event: Event, place: int = place, answered: threading.Event = answered) -> None:
                if isinstance(event, Finished):
                    found[place] = event.hypotheses[0]
                answered.set()

            engine.submit(Request(tuple(source), options, notify, first_token=first_token))
            if not at_once:
                answered.wait()
        engine.drain()
    return found
