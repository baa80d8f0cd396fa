"""Start, ready, drain, end: what is accepted is finished, and balancers know before callers do."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from dragoman.v1.translation_pb2 import TranslateRequest

TEXT = "The man who reads a book sees the woman who sings, and the dog sees the cat. " * 5


def test_sigterm_under_load_loses_nothing_accepted(serving, figures, full) -> None:
    callers, outcomes, times = 64 if full else 16, Counter(), {}
    with serving() as server, server.stub() as stub, server.channel() as watching:

        def call(_: int) -> None:
            while True:
                try:
                    stub.Translate(TranslateRequest(texts=[TEXT]), timeout=60)
                    outcomes["OK"] += 1
                except grpc.RpcError as error:
                    times.setdefault("first refusal", time.monotonic())
                    outcomes[f"{error.code().name}: {error.details()}"] += 1
                    return

        def watch() -> None:
            try:
                for reply in HealthStub(watching).Watch(HealthCheckRequest(), timeout=60):
                    if reply.status == HealthCheckResponse.NOT_SERVING:
                        times.setdefault("NOT_SERVING", time.monotonic())
            except grpc.RpcError:
                pass

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(callers) as pool:
            calls = [pool.submit(call, number) for number in range(callers)]
            server.wait_until(lambda: outcomes["OK"] > callers, "calls")
            server.process.send_signal(signal.SIGTERM)
            for one in calls:
                one.result()
        watcher.join()
        assert server.process.wait(30) == 0
    refused = {text for text in outcomes if text != "OK"}
    # A call that was accepted would end otherwise: CANCELLED, or UNAVAILABLE with a broken connection.
    assert all("shutting down" in text or "connect" in text.lower() for text in refused), refused
    assert times["NOT_SERVING"] <= times["first refusal"]
    figures("SIGTERM under load", "accepted calls lost", f"0 of {outcomes['OK']}", "none")


def test_a_second_signal_ends_at_once_and_the_port_is_free(serving) -> None:
    with serving() as server, server.stub() as stub:
        port = server.address.rpartition(":")[2]
        slow = stub.Translate.future(TranslateRequest(texts=[TEXT * 40]), timeout=60)
        server.wait_until(lambda: server.held()["slots_in_use"] > 0, "a call in progress")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 128 + signal.SIGTERM
        with pytest.raises(grpc.RpcError):
            slow.result(10)
        with serving("--port", port) as next_one:
            assert next_one.address == server.address
            assert next_one.translation() == server.usual


def test_a_killed_server_is_followed_by_another_on_its_port(serving) -> None:
    with serving() as server:
        server.process.kill()
        server.process.wait(10)
        with serving("--port", server.address.rpartition(":")[2]) as next_one:
            assert next_one.translation() == server.usual


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.6, 1.0])
def test_a_signal_while_loading_ends_the_server(seconds) -> None:
    words = ["import sys; from dragoman.cli import main; sys.exit(main())", "serve", "--port", "0"]
    with subprocess.Popen([sys.executable, "-c", *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "loading" in process.stderr.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
