"""A caller that does not read its stream loses it, and what it had in the engine at once."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub
from dragoman_server.config import CallLimits

# The window of a stream: less than any message.
NO_ROOM = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]


@pytest.fixture
def slow_server(engine: Any, start_server: Any, model: Any) -> Any:
    return start_server(model(engine), limits=CallLimits(write_seconds=0.3))


def unread_stream(channel: grpc.Channel, text: str) -> Any:
    call = TranslationServiceStub(channel).TranslateStream(pb.TranslateStreamRequest(text=text))
    # It exists, but nothing of it has been read.
    call.initial_metadata()
    return call


def test_the_segments_of_an_unread_stream_are_free_when_its_time_is_up(slow_server: Any, engine: Any) -> None:
    engine.holding = True
    with grpc.insecure_channel(slow_server.address, options=NO_ROOM) as channel:
        call = unread_stream(channel, "One. Two.")
        engine.wait_until(lambda: slow_server.grpc.calls_in_progress == 1)
        engine.wait_until(lambda: slow_server.grpc.calls_in_progress == 0)
        assert not engine.held
        assert not slow_server.calls, "no status can be sent before the message is read"
        with pytest.raises(grpc.RpcError, match=r"not read for 0\.3 s") as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
    engine.wait_until(lambda: slow_server.calls == [("TranslateStream", "CANCELLED")])


def test_a_reader_that_takes_its_time_is_served(slow_server: Any, engine: Any) -> None:
    with grpc.insecure_channel(slow_server.address) as channel:
        call = unread_stream(channel, "One. Two.")
        engine.wait_until(lambda: slow_server.calls == [("TranslateStream", "OK")])
        assert "".join(message.text_delta for message in call) == "ONE. TWO."


def test_whoever_leaves_an_unread_stream_is_forgotten(slow_server: Any, engine: Any) -> None:
    for waits in (False, True):
        slow_server.calls.clear()
        with grpc.insecure_channel(slow_server.address, options=NO_ROOM) as channel:
            call = unread_stream(channel, "One.")
            engine.wait_until(lambda: slow_server.grpc.calls_in_progress == 1)
            if waits:
                engine.wait_until(lambda: slow_server.grpc.calls_in_progress == 0)
            call.cancel()
        engine.wait_until(lambda: slow_server.calls == [("TranslateStream", "CANCELLED")])
        assert slow_server.grpc.calls_in_progress == 0


def test_an_unread_stream_does_not_hold_up_the_end(slow_server: Any, engine: Any) -> None:
    with grpc.insecure_channel(slow_server.address, options=NO_ROOM) as channel:
        unread_stream(channel, "One.")
        engine.wait_until(lambda: slow_server.grpc.calls_in_progress == 1)
        assert slow_server.stop(drain_seconds=10)
