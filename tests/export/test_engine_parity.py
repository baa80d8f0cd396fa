"""The serving engine on exported graphs against the reference search in torch."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dragoman_model.checkpoint import load_checkpoint
from dragoman_model.reference import beam_search
from dragoman_server.bundle import Bundle
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.messages import DecodingOptions, Event, Finished, Request
from dragoman_server.engine.onnx_device_runner import DeviceRunner
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import load_model
from dragoman_server.engine.runner import Runner
from dragoman_server.special_ids import BOS_ID, EOS_ID

BOUND = 12


@pytest.mark.parametrize(("runner", "workers"), [(OnnxRunner, 1), (OnnxRunner, 2), (DeviceRunner, 1)])
def test_mixed_requests_get_what_the_reference_finds(
    plain: tuple[Path, Bundle], runner: Callable[..., Runner], workers: int
) -> None:
    checkpoint, bundle = plain
    model, generator = load_checkpoint(checkpoint).model, np.random.default_rng(0)
    size = model.config.source_vocabulary_size
    loaded, finished = load_model(bundle), queue.SimpleQueue[tuple[int, Event]]()
    requests = [
        Request(
            source=(*generator.integers(4, size, 1 + number % 9).tolist(), EOS_ID),
            options=DecodingOptions(
                beam_size=1 + number % 4, length_penalty=0.6, max_output_tokens=BOUND - number % 3
            ),
            notify=lambda event, number=number: finished.put((number, event)),
            first_token=5 if number % 5 == 4 else None,
        )
        for number in range(24)
    ]
    runners = [runner(loaded, max_rows=10) for _ in range(workers)]
    with Engine(runners, max_queue=len(requests), bos_id=BOS_ID, eos_id=EOS_ID) as engine:
        for request in requests:
            engine.submit(request)
        events = dict(finished.get(timeout=30) for _ in requests)
    for number, request in enumerate(requests):
        options, event = request.options, events[number]
        assert isinstance(event, Finished), event
        expected = beam_search(
            model,
            request.source,
            beam_size=options.beam_size,
            max_output_tokens=BOUND - number % 3,
            alpha=options.length_penalty,
            first_token=request.first_token,
        )
        assert event.hypotheses[0].tokens == expected[0].tokens
        assert event.hypotheses[0].score == pytest.approx(expected[0].score, abs=1e-4)
