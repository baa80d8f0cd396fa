from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import dragoman
from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub
from dragoman_server.config import CallLimits
from dragoman_server.engine.messages import FinishReason
from dragoman_server.errors import (
    BundleError,
    DeadlineError,
    EngineError,
    ShuttingDownError,
)
from dragoman_server.service.listening import Listener

SERVICE = "dragoman.v1.TranslationService"


@pytest.fixture
def channel(server: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> TranslationServiceStub:
    return TranslationServiceStub(channel)


def refused(call: Callable[[], Any]) -> grpc.Call:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def rich_status(error: grpc.Call) -> status_pb2.Status:
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    assert (status.code, status.message) == (error.code().value[0], error.details())
    return status


def violated_field(error: grpc.Call) -> str:
    bad_request = error_details_pb2.BadRequest()
    [detail] = rich_status(error).details
    assert detail.Unpack(bad_request)
    [violation] = bad_request.field_violations
    assert violation.description
    return violation.field


def test_texts_are_translated_in_order_with_their_white_space(stub: Any) -> None:
    texts = ["A dog runs. It  barks!\r\n\n\tAnd so on.\u2028", "", " \n", "ok"]
    reply = stub.Translate(pb.TranslateRequest(texts=texts))
    assert [t.hypotheses[0].text for t in reply.translations] == [text.upper() for text in texts]
    assert (reply.model, reply.version) == ("shout", "3")
    first, empty, blank, _ = reply.translations
    assert (first.segments, empty.segments, blank.segments) == (3, 0, 0)
    assert first.source_tokens == first.hypotheses[0].output_tokens == len("A dog runs.It  barks!And so on.")
    assert first.hypotheses[0].log_prob == pytest.approx(-3.0)
    assert first.hypotheses[0].score == pytest.approx(-1.5)
    assert first.hypotheses[0].finish_reason == pb.FINISH_REASON_STOP
    assert not first.truncated
    assert first.timing.queue_seconds == pytest.approx(0.3)
    assert first.timing.decode_seconds == pytest.approx(0.9)
    assert 0 < first.timing.total_seconds < 10


def test_options_reach_the_engine(stub: Any, engine: Any) -> None:
    options = pb.DecodingOptions(beam_size=5, n_best=2, length_penalty=0.0, max_output_tokens=7)
    reply = stub.Translate(pb.TranslateRequest(texts=["One. Two."], options=options), timeout=30)
    assert [h.text for h in reply.translations[0].hypotheses] == ["ONE. TWO.", "ONE.! TWO.!"]
    for request in engine.submitted:
        given = request.options
        assert (given.beam_size, given.n_best, given.max_output_tokens) == (5, 2, 7)
        assert given.length_penalty == 0.0
        assert 0 < request.deadline - time.monotonic() < 31
    stub.Translate(pb.TranslateRequest(texts=["x"]))
    assert engine.submitted[-1].options.beam_size == 4
    assert engine.submitted[-1].deadline is None


def test_a_cut_sentence_is_reported(stub: Any, engine: Any) -> None:
    engine.finish_reason = FinishReason.LENGTH
    [translation] = stub.Translate(pb.TranslateRequest(texts=["x"])).translations
    assert translation.truncated
    assert translation.hypotheses[0].finish_reason == pb.FINISH_REASON_LENGTH


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("texts", {"texts": []}),
        ("texts", {"texts": ["x"] * 5}),
        ("texts[1]", {"texts": ["x", "\u00fc" * 501]}),
        ("texts", {"texts": ["a\n" * 26] * 2}),
        ("source_language", {"source_language": "xx"}),
        ("target_language", {"target_language": "en"}),
        ("options.beam_size", {"options": {"beam_size": 0}}),
        ("options.beam_size", {"options": {"beam_size": 7}}),
        ("options.beam_size", {"options": {"beam_size": 2**32 - 1}}),
        ("options.n_best", {"options": {"n_best": 0}}),
        ("options.n_best", {"options": {"n_best": 5}}),
        ("options.length_penalty", {"options": {"length_penalty": float("nan")}}),
        ("options.length_penalty", {"options": {"length_penalty": -1.0}}),
        ("options.max_output_tokens", {"options": {"max_output_tokens": 0}}),
    ],
)
def test_a_wrong_field_is_named(stub: Any, engine: Any, field: str, values: dict[str, Any]) -> None:
    error = refused(lambda: stub.Translate(pb.TranslateRequest(**{"texts": ["x"], **values})))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violated_field(error) == field
    assert not engine.submitted
    if "texts" not in values:
        error = refused(lambda: list(stub.TranslateStream(pb.TranslateStreamRequest(text="x", **values))))
        assert violated_field(error) == field


def test_limits_are_inclusive(stub: Any) -> None:
    reply = stub.Translate(pb.TranslateRequest(texts=["\u00fc" * 500, "", "", ""], options={"beam_size": 6}))
    assert reply.translations[0].hypotheses[0].text == "\u00fc" * 500
    error = refused(lambda: list(stub.TranslateStream(pb.TranslateStreamRequest(text="x" * 1001))))
    assert violated_field(error) == "text"


def test_a_message_far_beyond_the_limits_is_not_read(stub: Any, engine: Any) -> None:
    error = refused(lambda: stub.Translate(pb.TranslateRequest(texts=["x" * 30_000])))
    assert violated_field(error) == "texts[0]"
    error = refused(lambda: stub.Translate(pb.TranslateRequest(texts=["x" * 100_000])))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not engine.submitted
    assert stub.Translate(pb.TranslateRequest(texts=["x"])).translations


def test_unknown_models_are_not_found(stub: Any) -> None:
    for call in (
        lambda: stub.Translate(pb.TranslateRequest(model="y" * 5000, texts=["x"])),
        lambda: stub.GetModel(pb.GetModelRequest(name="nope")),
        lambda: stub.GetModel(pb.GetModelRequest()),
    ):
        error = refused(call)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "there are shout" in error.details()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BundleError("no beam"), grpc.StatusCode.FAILED_PRECONDITION),
        (DeadlineError("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (ShuttingDownError("draining"), grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_errors_have_statuses(stub: Any, server: Any, engine: Any, error: Exception, code: Any) -> None:
    engine.fails_with = error
    answer = refused(lambda: stub.Translate(pb.TranslateRequest(texts=["x"])))
    assert (answer.code(), answer.details()) == (code, str(error))
    assert rich_status(answer).code == code.value[0]
    engine.wait_until(lambda: bool(server.calls))
    assert server.calls == [("Translate", code.name)]


@pytest.mark.parametrize("error", [EngineError("secret"), ZeroDivisionError("secret")])
def test_internal_errors_are_opaque_outside_and_complete_inside(
    stub: Any, engine: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    engine.fails_with = error
    for call in (
        lambda: stub.Translate(pb.TranslateRequest(texts=["x"])),
        lambda: list(stub.TranslateStream(pb.TranslateStreamRequest(text="x"))),
    ):
        caplog.clear()
        answer = refused(call)
        assert answer.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in answer.details()
        identifier = answer.details().split()[2].rstrip(";")
        assert identifier in caplog.text
        assert "secret" in caplog.text


def test_a_full_queue_takes_all_texts_or_none(stub: Any, engine: Any) -> None:
    engine.holding = True
    engine.capacity = 3
    error = refused(lambda: stub.Translate(pb.TranslateRequest(texts=["One. Two.", "Three. Four."])))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "250"
    retry = error_details_pb2.RetryInfo()
    assert rich_status(error).details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 250
    assert not engine.held
    assert len(engine.cancelled) == 3
    engine.holding = False
    assert stub.Translate(pb.TranslateRequest(texts=["One. Two."])).translations


@pytest.mark.parametrize("kind", ["unary", "stream"])
@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_segments_are_freed_when_the_caller_is_gone(
    stub: Any, server: Any, engine: Any, kind: str, end: str
) -> None:
    engine.holding = True
    timeout = 0.5 if end == "deadline" else 30
    if kind == "unary":
        call = stub.Translate.future(pb.TranslateRequest(texts=["One. Two.", "Three."]), timeout=timeout)
    else:
        call = stub.TranslateStream(pb.TranslateStreamRequest(text="One. Two. Three."), timeout=timeout)
    engine.wait_until(lambda: len(engine.held) == 3)
    if end == "cancel":
        call.cancel()
    engine.wait_until(lambda: len(engine.cancelled) == 3)
    assert not engine.held
    engine.wait_until(lambda: bool(server.calls))
    method = "Translate" if kind == "unary" else "TranslateStream"
    assert server.calls == [(method, "CANCELLED" if end == "cancel" else "DEADLINE_EXCEEDED")]


def test_what_has_ended_is_not_cancelled(stub: Any, engine: Any) -> None:
    stub.Translate(pb.TranslateRequest(texts=["One. Two."]))
    assert not engine.cancelled


def test_a_reader_that_stops_reading_frees_the_segments(engine: Any, start_server: Any, model: Any) -> None:
    # Gone while the server waits for room to write: there gRPC ends the handler with GeneratorExit.
    limits = CallLimits(max_text_bytes=2**21)
    server = start_server(model(engine, max_source_tokens=2**20, max_call_tokens=2**20), limits=limits)
    engine.holding = True
    with grpc.insecure_channel(server.address) as channel:
        request = pb.TranslateStreamRequest(text="\n".join(["a" * 50_000] * 8))
        call = TranslationServiceStub(channel).TranslateStream(request)
        engine.wait_until(lambda: len(engine.held) == 8)
        for segment in engine.held[:-1]:
            server.loop.call_soon_threadsafe(engine.finish, segment)
        engine.wait_until(lambda: len(engine.held) == 1)
        time.sleep(0.2)
        assert not engine.cancelled
        call.cancel()
        engine.wait_until(lambda: len(engine.cancelled) == 1)


@pytest.mark.parametrize("data", [b"\x22\x02\xff\xfe", b"\x22\x03\xed\xa0\x80", b"garbage", b"\x22\x7f"])
@pytest.mark.parametrize("method", ["Translate", "TranslateStream"])
def test_bytes_that_are_no_message(channel: grpc.Channel, engine: Any, data: bytes, method: str) -> None:
    if method == "Translate":
        error = refused(lambda: channel.unary_unary(f"/{SERVICE}/{method}")(data))
    else:
        error = refused(lambda: list(channel.unary_stream(f"/{SERVICE}/{method}")(data)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violated_field(error) == "request"
    assert not engine.submitted


def test_mutated_messages_are_answered_or_refused(channel: grpc.Channel) -> None:
    valid = pb.TranslateRequest(
        model="shout",
        source_language="en",
        target_language="de",
        texts=["A dog runs. \U0001f600", "\u00dcber \u4f60\u597d"],
        options=pb.DecodingOptions(beam_size=2, n_best=2, length_penalty=0.6, max_output_tokens=9),
    ).SerializeToString()
    rng = random.Random(5)
    call = channel.unary_unary(f"/{SERVICE}/Translate")
    codes = set()
    for _ in range(20):
        futures = [call.future(_mutated(valid, rng)) for _ in range(100)]
        codes |= {future.code() for future in futures}
    assert codes <= {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    }
    assert grpc.StatusCode.INVALID_ARGUMENT in codes


def _mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(4):
            case 0:
                changed[position : position + 1] = bytes([rng.randrange(256)])
            case 1:
                changed.insert(position, rng.randrange(256))
            case 2:
                del changed[position : position + rng.randint(1, 5)]
            case 3:
                changed[position:position] = rng.randbytes(rng.randint(1, 8))
    return bytes(changed)


def test_bad_bytes_for_reflection_are_an_invalid_argument(channel: grpc.Channel) -> None:
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT") as caught:
        list(channel.stream_stream(method)(iter([b"\xff\xff"]), timeout=5))
    assert "protobuf" not in caught.value.details()


def test_health_and_reflection(channel: grpc.Channel, server: Any, engine: Any) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    error = refused(lambda: health.Check(health_pb2.HealthCheckRequest(service="nope")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    engine.wait_until(lambda: len(server.calls) == 3)
    assert server.calls[1:] == [("Check", "OK"), ("Check", "NOT_FOUND")]
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    [reply] = reflection.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    assert SERVICE in {service.name for service in reply.list_services_response.service}


def test_models_are_listed_and_described(stub: Any) -> None:
    [summary] = stub.ListModels(pb.ListModelsRequest()).models
    assert (summary.name, list(summary.source_languages), list(summary.target_languages)) == (
        "shout",
        ["en"],
        ["de"],
    )
    described = stub.GetModel(pb.GetModelRequest(name="shout"))
    assert described.summary == summary
    assert described.dimensions == {"d_model": 8}
    limits = described.limits
    assert (limits.max_texts, limits.max_text_bytes, limits.max_beam_size) == (4, 1000, 6)
    assert (limits.max_source_tokens, limits.max_output_tokens, limits.max_queue) == (64, 99, 50)
    assert (limits.max_call_tokens, limits.max_concurrent_calls) == (2000, 40)
    assert (described.precision, described.device, described.licence) == ("fp32", "cpu", "CC0-1.0")


def test_draining_finishes_what_was_accepted_and_refuses_the_rest(
    channel: grpc.Channel, stub: Any, server: Any, engine: Any
) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    states = iter(health.Watch(health_pb2.HealthCheckRequest(service=SERVICE)))
    assert next(states).status == health_pb2.HealthCheckResponse.SERVING
    engine.holding = True
    accepted = stub.Translate.future(pb.TranslateRequest(texts=["one"]))
    engine.wait_until(lambda: len(engine.held) == 1)
    results: list[bool] = []
    stopping = threading.Thread(target=lambda: results.append(server.stop(drain_seconds=10)))
    stopping.start()
    assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
    error = refused(lambda: stub.Translate(pb.TranslateRequest(texts=["two"])))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    server.loop.call_soon_threadsafe(engine.finish, engine.held[0])
    assert accepted.result().translations[0].hypotheses[0].text == "ONE"
    stopping.join(5)
    assert results == [True]


def test_draining_has_an_end(stub: Any, server: Any, engine: Any) -> None:
    engine.holding = True
    call = stub.Translate.future(pb.TranslateRequest(texts=["one"]))
    engine.wait_until(lambda: len(engine.held) == 1)
    assert server.stop(drain_seconds=0.2) is False
    assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    engine.wait_until(lambda: not engine.held)


def call_of(field: str, value: int) -> pb.TranslateRequest:
    """A call that uses as much of one limit as `value` says, and little of the others."""
    match field:
        case "max_texts":
            return pb.TranslateRequest(texts=["x"] * value)
        case "max_text_bytes":
            return pb.TranslateRequest(texts=["x" * value])
        case "max_beam_size":
            return pb.TranslateRequest(texts=["x"], options=pb.DecodingOptions(beam_size=value))
        case _:
            # A token a byte; long words are cut where they have to be.
            whole, rest = divmod(value, 900)
            return pb.TranslateRequest(texts=["x" * 900] * whole + (["x" * rest] if rest else []))


@pytest.mark.parametrize("field", ["max_texts", "max_text_bytes", "max_beam_size", "max_call_tokens"])
def test_a_limit_is_kept_to_the_unit(stub: Any, field: str) -> None:
    limit = getattr(stub.GetModel(pb.GetModelRequest(name="shout")).limits, field)
    for value in (limit - 1, limit):
        stub.Translate(call_of(field, value))
    error = refused(lambda: stub.Translate(call_of(field, limit + 1)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(limit) in error.details()
    assert violated_field(error).startswith("options" if field == "max_beam_size" else "text")


def test_as_many_calls_at_once_are_taken_as_stated(server: Any, stub: Any, engine: Any) -> None:
    limit = stub.GetModel(pb.GetModelRequest(name="shout")).limits.max_concurrent_calls
    engine.holding = True
    calls = [stub.Translate.future(pb.TranslateRequest(texts=["x"])) for _ in range(limit)]
    engine.wait_until(lambda: len(engine.held) == limit)
    error = refused(lambda: stub.Translate(pb.TranslateRequest(texts=["x"])))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"{limit} calls are in progress" in error.details()
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
    engine.holding = False
    for request in list(engine.held):
        engine.finish(request)
    assert all(call.result(10).translations for call in calls)
    stub.Translate(pb.TranslateRequest(texts=["x"]))


def test_a_connection_has_as_many_calls_in_progress_as_stated(
    start_server: Any, model: Any, engine: Any
) -> None:
    address = start_server(model(engine), listener=Listener(max_connection_calls=3)).address
    # One of the three is the watch of the server's health. A call that comes as another ends may yet be
    # refused, which the client tries again.
    with dragoman.Client(address) as client, ThreadPoolExecutor(4) as threads:
        client.translate("x")  # only once the server's settings have come does the client know the bound
        engine.holding = True
        calls = [threads.submit(client.translate, "x") for _ in range(4)]
        engine.wait_until(lambda: len(engine.held) == 2)
        time.sleep(0.2)
        assert len(engine.held) == 2
        engine.holding = False
        for request in list(engine.held):
            engine.finish(request)
        assert [call.result(20).text for call in calls] == ["X"] * 4
