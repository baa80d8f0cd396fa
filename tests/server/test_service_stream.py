from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub
from dragoman_server.engine.messages import DecodingOptions
from dragoman_server.languages import Direction
from dragoman_server.translations import TextTranslation

EN_DE = Direction("en", "de")


@pytest.fixture
def stub(server: Any) -> Iterator[TranslationServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield TranslationServiceStub(channel)


def deltas(replies: list[pb.TranslateStreamResponse]) -> list[str]:
    return [reply.text_delta for reply in replies if reply.text_delta]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_joined_deltas_are_the_final_text(stub: Any, beam_size: int) -> None:
    text = " A dog runs. It\u2019s  \u00fcber \U0001f600!\r\n\n\tAnd so on.\u2028 "
    options = pb.DecodingOptions(beam_size=beam_size, n_best=beam_size)
    replies = list(stub.TranslateStream(pb.TranslateStreamRequest(text=text, options=options)))
    assert (replies[0].model, replies[0].version) == ("shout", "3")
    assert all(not reply.model and not reply.HasField("final") for reply in replies[1:-1])
    final = replies[-1].final
    shouted = "".join(char.upper() if char.isascii() else char for char in text)
    assert "".join(deltas(replies)) == final.hypotheses[0].text == shouted
    assert len(final.hypotheses) == beam_size
    assert (final.segments, final.truncated) == (3, False)
    assert all("\ufffd" not in delta for delta in deltas(replies))


def test_blank_texts_stream_as_they_are(stub: Any) -> None:
    for text in ("", " \n\t"):
        replies = list(stub.TranslateStream(pb.TranslateStreamRequest(text=text)))
        assert "".join(deltas(replies)) == replies[-1].final.hypotheses[0].text == text


def test_text_comes_as_the_engine_makes_progress_and_in_order(stub: Any, server: Any, engine: Any) -> None:
    engine.holding = True
    replies = iter(stub.TranslateStream(pb.TranslateStreamRequest(text="One two. Three.")))
    engine.wait_until(lambda: len(engine.held) == 2)
    assert next(replies).model == "shout"
    first, second = engine.held
    run = server.loop.call_soon_threadsafe
    run(engine.finish, second)
    run(engine.progress, first, 3)
    assert next(replies).text_delta == "ONE"
    run(engine.progress, first, 5)
    assert next(replies).text_delta == " T"
    run(engine.finish, first)
    rest = list(replies)
    assert "".join(deltas(rest)) == "WO. THREE."
    assert rest[-1].final.hypotheses[0].text == "ONE TWO. THREE."


def test_incomplete_characters_are_held_back(stub: Any, server: Any, engine: Any) -> None:
    engine.holding = True
    replies = iter(stub.TranslateStream(pb.TranslateStreamRequest(text="a\U0001f600b")))
    engine.wait_until(lambda: len(engine.held) == 1)
    for tokens in (1, 2, 3, 4, 5):
        server.loop.call_soon_threadsafe(engine.progress, engine.held[0], tokens)
    assert next(replies).model == "shout"
    received = ""
    while received != "A\U0001f600":
        received += next(replies).text_delta
        assert "A\U0001f600".startswith(received)
    server.loop.call_soon_threadsafe(engine.finish, engine.held[0])
    assert "".join(deltas(list(replies))) == "B"


async def collected(translator: Any, text: str, options: DecodingOptions) -> list[str | TextTranslation]:
    return [update async for update in translator.stream(text, EN_DE, options, None)]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.text(alphabet="aB .!?,;\n\r\t\u00a0\u2028\u3002\u00fc\U0001f600\ufffd", max_size=60), st.integers(1, 3)
)
def test_streams_end_as_calls_do(engine: Any, model: Any, text: str, n_best: int) -> None:
    translator = model(engine, max_source_tokens=12).translator
    options = DecodingOptions(n_best=n_best)
    *pieces, streamed = asyncio.run(collected(translator, text, options))
    [called] = asyncio.run(translator.translate([text], EN_DE, options, None))
    assert streamed.hypotheses == called.hypotheses
    assert "".join(pieces) == called.hypotheses[0].text
    assert called.hypotheses[0].text == "".join(c.upper() if c.isascii() else c for c in text)
    assert all(len(request.source) <= 12 for request in engine.submitted)


def test_progress_that_does_not_last_is_an_error(stub: Any, server: Any, engine: Any) -> None:
    engine.holding = True
    replies = iter(stub.TranslateStream(pb.TranslateStreamRequest(text="abc")))
    engine.wait_until(lambda: len(engine.held) == 1)
    [request] = engine.held
    server.loop.call_soon_threadsafe(engine.progress, request, 2)
    assert [next(replies).text_delta for _ in range(2)] == ["", "AB"]
    request.source = request.source[1:]
    server.loop.call_soon_threadsafe(engine.finish, request)
    with pytest.raises(grpc.RpcError) as caught:
        next(replies)
    assert caught.value.code() is grpc.StatusCode.INTERNAL


def test_a_text_without_words_has_numbers_as_any_other(engine: Any, model: Any) -> None:
    options = DecodingOptions()
    [found] = asyncio.run(model(engine).translator.translate([" \n"], EN_DE, options, None))
    best = found.hypotheses[0]
    assert [type(number) for number in (best.log_prob, best.score)] == [float, float]
    assert (best.text, best.score, engine.submitted) == (" \n", 0.0, [])
