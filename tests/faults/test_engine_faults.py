"""What goes wrong inside the engine harms whoever it concerns, and is noticed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from dragoman.v1.translation_pb2 import TranslateRequest

GUILTY = "Bananas"
INNOCENT = [
    "The cat sleeps.",
    "Where is my book?",
    "He sings in the garden because he is happy.",
    "I would like to drink some water.",
    "They have never been to London.",
]


def call(stub, text: str) -> str:
    """The translation and its exact score, or the name of the status."""
    try:
        reply = stub.Translate(TranslateRequest(texts=[text]), timeout=60)
    except grpc.RpcError as error:
        return error.code().name
    best = reply.translations[0].hypotheses[0]
    return f"{best.text} {best.score!r}"


@pytest.mark.parametrize("fault", ["step:raise", "encode:raise", "step:nan"])
def test_a_failure_in_a_batch_is_the_guilty_requests_alone(serving, token_of, figures, full, fault) -> None:
    calls = 400 if full else 40
    faults = {"DRAGOMAN_FAULTS": f"{fault}@token={token_of(GUILTY)}"}
    with serving(environment=faults) as server, server.stub() as stub, server.unharmed():
        expected = {text: call(stub, text) for text in INNOCENT}
        assert not {"INTERNAL", "UNKNOWN"} & set(expected.values())
        texts = [GUILTY if number % 8 == 3 else INNOCENT[number % len(INNOCENT)] for number in range(calls)]
        with ThreadPoolExecutor(32) as pool:
            results = list(pool.map(lambda text: call(stub, text), texts))
        for text, result in zip(texts, results, strict=True):
            assert result == ("INTERNAL" if text == GUILTY else expected[text])
    guilty = texts.count(GUILTY)
    figures(f"{fault} in shared batches", "guilty requests failed", f"{guilty} of {guilty}", "all")
    figures(f"{fault} in shared batches", "others failed or changed", 0, "none")


def test_a_stalled_worker_is_noticed_and_comes_back(serving, token_of, figures) -> None:
    faults = {"DRAGOMAN_FAULTS": f"step:sleep=5@token={token_of(GUILTY)}"}
    with serving("--stall-seconds", 1, environment=faults) as server, server.stub() as stub:
        with server.unharmed(), ThreadPoolExecutor(2) as pool:
            started = time.monotonic()
            guilty = pool.submit(call, stub, GUILTY)
            server.wait_until(lambda: server.held()["slots_in_use"] > 0, "a request decoding")
            waiting = pool.submit(call, stub, INNOCENT[0])
            assert guilty.result(30) == "UNAVAILABLE"
            assert waiting.result(30) == "UNAVAILABLE"
            noticed = time.monotonic() - started
            assert server.health() == "NOT_SERVING"
            assert server.metrics()["dragoman_stalled_workers"] == 1
            assert call(stub, INNOCENT[0]) == "UNAVAILABLE"
            server.wait_until(lambda: server.health() == "SERVING", "SERVING again", 30)
        assert server.stop() == 0
    figures("a step of 5 s, 1 s allowed", "callers told after / s", round(noticed, 2), "1 to 2")


def test_a_dead_worker_is_noticed_and_the_server_ends_when_told(serving, token_of) -> None:
    faults = {"DRAGOMAN_FAULTS": f"step:exit@token={token_of(GUILTY)}"}
    with serving(environment=faults) as server, server.stub() as stub:
        assert call(stub, GUILTY) == "UNAVAILABLE"
        assert server.health() == "NOT_SERVING"
        assert call(stub, INNOCENT[0]) == "UNAVAILABLE"
        assert not server.held()["calls_in_progress"]
        assert server.stop() == 0


def states(server) -> list[str]:
    """Of the whole server, and of its one model."""
    return [server.health(), server.health("en-de")]


def test_a_network_that_only_fails_is_not_serving_until_it_works_again(serving) -> None:
    # Start-up takes fewer steps than that; every probe takes one of those that fail.
    faults = {"DRAGOMAN_FAULTS": "step:raise@1000-1009"}
    with serving(environment=faults) as server, server.stub() as stub:
        assert states(server) == ["SERVING"] * 2
        while call(stub, INNOCENT[2]) != "INTERNAL":
            pass
        for _ in range(5):
            assert call(stub, INNOCENT[2]) == "INTERNAL"
        server.wait_until(lambda: states(server) == ["NOT_SERVING"] * 2, "NOT_SERVING")
        assert call(stub, INNOCENT[2]) == "INTERNAL"
        # Nobody calls, as balancers would have it: the probes go on.
        server.wait_until(lambda: states(server) == ["SERVING"] * 2, "SERVING again", 60)
        assert server.translation() == server.usual
        log = server.log.read_text()
        assert log.count("batches in a row have failed, and so does a canary; its health is NOT_SERVING") == 1
        assert log.count("model en-de: a canary succeeds; its health is SERVING again") == 1


def test_one_text_that_fails_again_and_again_does_not_end_service(serving, token_of) -> None:
    faults = {"DRAGOMAN_FAULTS": f"step:nan@token={token_of(GUILTY)}"}
    with serving("--failed-batches", 2, environment=faults) as server, server.stub() as stub:
        before = server.metrics()["dragoman_encode_seconds_count"]
        for number in range(40):
            assert call(stub, GUILTY) == "INTERNAL"
            assert states(server) == ["SERVING"] * 2
            if server.metrics()["dragoman_encode_seconds_count"] > before + number + 1:
                break  # a canary was asked for, too
            time.sleep(0.1)
        else:
            pytest.fail("no canary was asked for")
        assert states(server) == ["SERVING"] * 2
