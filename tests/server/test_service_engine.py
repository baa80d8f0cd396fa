"""The service on the real engine."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import dragoman
from dragoman_server.config import CallLimits
from dragoman_server.engine import Engine


@pytest.fixture
def real_engine(echo_runner: Any) -> Iterator[Engine]:
    with Engine(
        [echo_runner(max_rows=16, seconds_per_step=0.001)], max_queue=64, bos_id=2, eos_id=3
    ) as engine:
        yield engine


@pytest.fixture
def client(real_engine: Engine, start_server: Any, model: Any) -> Iterator[dragoman.Client]:
    server = start_server(model(real_engine), limits=CallLimits())
    with dragoman.Client(server.address) as client:
        yield client


def assert_nothing_is_left(engine: Engine) -> None:
    assert engine.drain(timeout=10)
    stats = engine.stats()
    assert (stats.waiting, stats.unanswered, stats.slots_in_use) == (0, 0, 0)


def test_texts_come_back(client: dragoman.Client, real_engine: Engine) -> None:
    text = " Hello there.\r\n\r\n\u00dcber uns:\t\U0001f600! " + "word " * 40
    for beam_size in (1, 4):
        assert client.translate(text, beam_size=beam_size).text == text
        stream = client.stream(text, beam_size=beam_size)
        pieces = list(stream)
        assert "".join(pieces) == stream.result().text == text
        assert len(pieces) > 50
    translation = client.translate("Hello.", beam_size=4, n_best=3)
    assert len(translation.hypotheses) == 3
    assert translation.timing.decode_seconds > 0
    cut = client.translate("Hello there.", max_output_tokens=3)
    assert (cut.text, cut.truncated) == ("Hel", True)
    assert_nothing_is_left(real_engine)


def test_mixed_calls_that_end_in_every_way_leave_nothing_behind(
    client: dragoman.Client, real_engine: Engine
) -> None:
    def call(number: int) -> str:
        rng = random.Random(number)
        text = " ".join(["abcdef."] * rng.randint(1, 5))
        options: dragoman.options.TranslateArguments = {"beam_size": rng.choice([1, 1, 2, 4])}
        kind = rng.choice(["unary", "stream", "late", "gone", "wrong"])
        try:
            match kind:
                case "unary":
                    assert client.translate(text, **options).text == text
                case "stream":
                    assert "".join(client.stream(text, **options)) == text
                case "late":
                    client.translate(text, timeout=rng.uniform(0.001, 0.03), **options)
                case "gone":
                    with client.stream(text, **options) as stream, contextlib.suppress(StopIteration):
                        for _ in range(rng.randint(0, 3)):
                            next(stream)
                case "wrong":
                    client.translate(text, beam_size=99)
        except dragoman.DragomanError as error:
            return type(error).__name__
        return "OK"

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(call, range(300)))
    assert set(outcomes) <= {"OK", "DeadlineExceeded", "InvalidArgument", "ResourceExhausted"}
    assert min(outcomes.count(kind) for kind in ("OK", "DeadlineExceeded", "InvalidArgument")) > 10
    assert_nothing_is_left(real_engine)


def test_a_flooded_server_refuses_and_recovers(client: dragoman.Client, real_engine: Engine) -> None:
    text = " ".join(["abcdefghijklmnopqrstuvwxyz."] * 45)
    outcomes: list[str] = []

    def flood() -> None:
        try:
            outcomes.append(client.translate(text, beam_size=1, timeout=20).model)
        except (dragoman.ResourceExhausted, dragoman.DeadlineExceeded) as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "shout" in outcomes
    assert len(outcomes) == 8
    assert client.translate("Hello.").text == "Hello."
    assert_nothing_is_left(real_engine)
