"""The check that follows every case notices what a case has left behind."""

import threading

import pytest

import dragoman

LONG = "The man who reads a book sees the woman who sings, and the dog that sleeps sees the cat. " * 30


def test_a_server_at_rest_is_unharmed(serving) -> None:
    with serving() as server:
        with server.unharmed():
            assert server.translation() == server.usual
        assert server.stop() == 0


def test_a_call_left_behind_is_noticed(serving) -> None:
    with serving("--max-rows", 8) as server, dragoman.Client(server.address) as client:
        stop = threading.Event()

        def keep_calling() -> None:
            while not stop.is_set():
                client.translate(LONG, timeout=60)

        threads = [threading.Thread(target=keep_calling) for _ in range(4)]
        left_behind = pytest.raises(AssertionError, match="still not: slots, queue and calls empty")
        with left_behind, server.unharmed(seconds=0.5):
            for thread in threads:
                thread.start()
            server.wait_until(lambda: any(server.held().values()), "a call in progress")
        stop.set()
        for thread in threads:
            thread.join()
