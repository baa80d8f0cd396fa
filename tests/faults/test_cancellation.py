"""Cancels at every stage of a request's life: its rows are free by the next step, and nobody else notices."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import grpc
import pytest

from dragoman.v1.translation_pb2 import DecodingOptions, TranslateRequest, TranslateStreamRequest

MARKED = "Bananas"
BUSY = " ".join(["The man who reads a book sees the woman who sings and the dog that sleeps"] * 4)
ROWS = 8
OTHERS = 1
"""Rows of the translation that goes on beside those cancelled."""
ALLOWED_STEPS = 2
"""Of a cancelled row: the one in progress, and one that begins while the cancel crosses the network."""


def request_of(text: str, beam_size: int = 1) -> TranslateRequest:
    return TranslateRequest(texts=[text], options=DecodingOptions(beam_size=beam_size))


def translation(stub, request: TranslateRequest) -> str:
    """With its exact score."""
    best = stub.Translate(request, timeout=120).translations[0].hypotheses[0]
    return f"{best.text} {best.score!r}"


@contextlib.contextmanager
def undisturbed(stub, request: TranslateRequest) -> Iterator[None]:
    """Translate over and over meanwhile; every result is the one that it was before."""
    expected, ended = translation(stub, request), threading.Event()

    def others() -> list[str]:
        results = [translation(stub, request)]
        while not ended.is_set():
            results.append(translation(stub, request))
        return results

    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(others)
        try:
            yield
        finally:
            ended.set()
    assert set(results.result()) == {expected}


def cancelled(server) -> float:
    """Segments that ended so."""
    return server.by_label("dragoman_segments_total", "outcome").get("cancelled", 0.0)


def encoder_tokens(server) -> float:
    """All that the encoder was ever given."""
    return server.metrics()["dragoman_encoder_tokens_total"]


def cancel_all(calls: list[grpc.Future], chance: random.Random) -> None:
    chance.shuffle(calls)
    for call in calls:
        call.cancel()


def steps_after_cancel(server, calls: list[grpc.Future], chance: random.Random) -> float:
    """Cancel calls that hold a row each; the steps that their rows still ran, on average.

    Those of the other translation, one row a step, are taken off.
    """
    before, count = server.metrics(), len(calls)
    cancel_all(calls, chance)
    server.wait_until(lambda: server.held()["slots_in_use"] <= OTHERS, "the rows free", 60)
    after = server.metrics()
    rows, steps = (
        after[f"dragoman_{name}"] - before[f"dragoman_{name}"]
        for name in ("step_rows_total", "rows_per_step_count")
    )
    return (rows - OTHERS * steps) / count


def test_who_is_cancelled_in_the_queue_is_never_encoded(serving, figures, full) -> None:
    count, chance = 250 if full else 20, random.Random(1)
    faults = {"DRAGOMAN_FAULTS": f"step:sleep={0.1 if full else 0.02}"}
    flags = ("--max-rows", ROWS, "--max-queue", count)
    with serving(*flags, environment=faults) as server, server.stub() as stub, server.unharmed(seconds=60):
        everything = request_of(BUSY, beam_size=ROWS)
        encoded = [encoder_tokens(server)]
        expected, gone = translation(stub, everything), cancelled(server)
        encoded.append(encoder_tokens(server))
        decoding = stub.Translate.future(everything, timeout=120)
        server.wait_until(lambda: server.held()["slots_in_use"] == ROWS, "every slot taken")
        calls = [stub.Translate.future(request_of(BUSY), timeout=120) for _ in range(count)]
        server.wait_until(lambda: server.held()["queue_depth"] == count, "all in the queue")
        cancel_all(calls, chance)
        server.wait_until(lambda: cancelled(server) == gone + count, "all cancelled")
        assert not decoding.done()
        best = decoding.result().translations[0].hypotheses[0]
        assert f"{best.text} {best.score!r}" == expected
        server.wait_until(lambda: server.held()["slots_in_use"] == 0, "every slot free")
        encoded.append(encoder_tokens(server))
        assert encoded[2] - encoded[1] == encoded[1] - encoded[0] > 0
    figures(f"{count} cancels in the queue", "tokens encoded", 0, "none")


def test_who_is_cancelled_while_encoding_leaves_before_the_second_step(
    serving, token_of, figures, full
) -> None:
    count, chance = 250 if full else 8, random.Random(2)
    faults = {"DRAGOMAN_FAULTS": f"step:sleep=0.02,encode:sleep=0.2@token={token_of(MARKED)}"}
    spent = []
    with (
        serving("--max-rows", ROWS, environment=faults) as server,
        server.stub() as stub,
        server.unharmed(seconds=60),
        undisturbed(stub, request_of(BUSY)),
    ):
        gone = cancelled(server)
        for _ in range(count):
            encoded = server.metrics()["dragoman_encode_seconds_count"]
            call = stub.Translate.future(request_of(f"{MARKED} {BUSY}"), timeout=120)
            server.wait_until(lambda: server.held()["slots_in_use"] > OTHERS, "a request encoding")
            time.sleep(chance.uniform(0.0, 0.1))
            still = server.metrics()["dragoman_encode_seconds_count"] == encoded
            steps = steps_after_cancel(server, [call], chance)
            if still:
                spent.append(steps)
        server.wait_until(lambda: cancelled(server) == gone + count, "all cancelled")
    report(figures, full, f"{count} cancels while encoding", spent)


@pytest.mark.parametrize("stage", ["decoding", "writing"])
def test_who_is_cancelled_while_decoding_leaves_before_the_next_step(serving, figures, full, stage) -> None:
    together = ROWS - OTHERS
    rounds, chance = 36 if full else 2, random.Random(3)
    faults = {"DRAGOMAN_FAULTS": f"step:sleep={0.1 if full else 0.02}"}
    spent = []
    with (
        serving("--max-rows", ROWS, environment=faults) as server,
        server.stub() as stub,
        server.unharmed(seconds=60),
        undisturbed(stub, request_of(BUSY)),
    ):
        gone = cancelled(server)
        for _ in range(rounds):
            if stage == "decoding":
                calls = [stub.Translate.future(request_of(BUSY), timeout=120) for _ in range(together)]
            else:
                options = DecodingOptions(beam_size=1)
                request = TranslateStreamRequest(text=BUSY, options=options)
                calls = [stub.TranslateStream(request, timeout=120) for _ in range(together)]
            server.wait_until(lambda: server.held()["slots_in_use"] >= together, "all decoding")
            if stage == "decoding":
                time.sleep(chance.uniform(0.0, 0.5))
            else:  # Written to, each some messages on; the first one has no text.
                for call in calls:
                    assert list(islice(call, chance.randint(2, 5)))
            spent.append(steps_after_cancel(server, calls, chance))
        server.wait_until(lambda: cancelled(server) == gone + rounds * together, "all cancelled")
    report(figures, full, f"{rounds * together} cancels while {stage}", spent)


def report(figures, full, case: str, spent: list[float]) -> None:
    """Steps that cancelled rows still ran: the mean of each round's."""
    figures(case, "steps that their rows still ran, highest mean of a round", max(spent), f"{ALLOWED_STEPS}")
    if full:
        assert max(spent) <= ALLOWED_STEPS
