"""Spans as a collector gets them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub
from dragoman_server.config import CallLimits
from dragoman_server.engine import Engine
from dragoman_server.errors import EngineError, StalledError
from dragoman_server.logs import JsonFormatter, note_trace
from dragoman_server.service.tracing import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
STAGES = ["tokenise", "queue", "encode", "decode", "detokenise"]
SECRET = "Geheimnis"


class Traced:
    """A server whose calls are traced, and what of them has come to the collector."""

    def __init__(self, collector: Any, start_server: Any, model: Any, ratio: float) -> None:
        self._collector = collector
        self.tracing = Tracing(collector.endpoint, ratio)
        self._server = start_server(model, limits=CallLimits(max_texts=4), tracing=self.tracing)
        self.channel = grpc.insecure_channel(self._server.address, options=[("grpc.enable_retries", 0)])
        self.stub: Any = TranslationServiceStub(self.channel)

    def translate(self, *texts: str, traceparent: str | None = None, **fields: Any) -> Any:
        metadata = () if traceparent is None else (("traceparent", traceparent),)
        return self.stub.Translate(pb.TranslateRequest(texts=texts, **fields), metadata=metadata)

    def spans(self) -> list[Span]:
        """All of them: no further call is traced."""
        self.channel.close()
        self._server.stop()
        asyncio.run(self.tracing.close())
        return list(self._collector.spans)


@pytest.fixture
def real_engine(echo_runner: Any) -> Iterator[Engine]:
    with Engine(
        [echo_runner(max_rows=16, seconds_per_step=0.001)], max_queue=64, bos_id=2, eos_id=3
    ) as engine:
        yield engine


@pytest.fixture
def traced_by(collector: Any, start_server: Any, model: Any) -> Callable[..., Traced]:
    return lambda engine, ratio=1.0: Traced(collector, start_server, model(engine), ratio)


@pytest.fixture
def traced(real_engine: Engine, traced_by: Any) -> Traced:
    return traced_by(real_engine)


def attributes(span: Span) -> dict[str, Any]:
    values = {pair.key: pair.value for pair in span.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


def of_calls(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]


def test_a_call_is_a_span_with_its_stages_below_it(traced: Traced) -> None:
    before = time.time_ns()
    traced.translate("One. Two.", "Three.")
    after = time.time_ns()
    spans = traced.spans()
    [call] = of_calls(spans)
    assert call.name == "dragoman.v1.TranslationService/Translate"
    assert call.parent_span_id == b""
    assert attributes(call) == {
        "rpc.system.name": "grpc",
        "rpc.method": "dragoman.v1.TranslationService/Translate",
        "rpc.response.status_code": "OK",
        "rpc.system": "grpc",
        "rpc.service": "dragoman.v1.TranslationService",
        "rpc.grpc.status_code": 0,
        "dragoman.model.name": "shout",
        "dragoman.model.version": "3",
        "dragoman.texts": 2,
        "dragoman.sentences": 3,
        "dragoman.source_tokens": 14,
        "dragoman.output_tokens": 14,
    }
    assert call.status.code == Status.STATUS_CODE_UNSET
    assert before <= call.start_time_unix_nano < call.end_time_unix_nano <= after
    stages = [span for span in spans if span is not call]
    assert [stage.name for stage in stages] == STAGES
    for stage in stages:
        assert (stage.trace_id, stage.parent_span_id) == (call.trace_id, call.span_id)
        assert call.start_time_unix_nano <= stage.start_time_unix_nano
        assert stage.start_time_unix_nano <= stage.end_time_unix_nano <= call.end_time_unix_nano


def test_stages_last_as_long_as_the_reply_says(traced: Traced) -> None:
    timing = traced.translate("A sentence.").translations[0].timing
    spans = {span.name: span for span in traced.spans()}
    for name, seconds in (
        ("queue", timing.queue_seconds),
        ("encode", timing.encode_seconds),
        ("decode", timing.decode_seconds),
    ):
        span = spans[name]
        assert attributes(span)["dragoman.stage.seconds"] == pytest.approx(seconds, abs=1e-6)
        lasted = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert lasted == pytest.approx(seconds, abs=1e-6)
    assert timing.decode_seconds > 0.01
    ordered = [spans[name] for name in STAGES]
    for earlier, later in itertools.pairwise(ordered):
        assert earlier.end_time_unix_nano <= later.start_time_unix_nano + 1000


def test_a_stream_is_traced_as_well(traced: Traced) -> None:
    request = pb.TranslateStreamRequest(text="Hello there.")
    replies = list(traced.stub.TranslateStream(request, metadata=(("traceparent", SAMPLED),)))
    assert replies[-1].final.source_tokens == 12
    spans = traced.spans()
    [call] = of_calls(spans)
    assert call.name == "dragoman.v1.TranslationService/TranslateStream"
    assert attributes(call)["dragoman.output_tokens"] == 12
    assert [span.name for span in spans if span is not call] == STAGES


def test_the_callers_span_is_the_parent(traced: Traced) -> None:
    traced.translate("x", traceparent=SAMPLED)
    spans = traced.spans()
    [call] = of_calls(spans)
    assert call.parent_span_id.hex() == PARENT
    assert {span.trace_id.hex() for span in spans} == {TRACE}


@pytest.mark.parametrize(
    "traceparent",
    [
        SECRET,
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-{SECRET}",
        SAMPLED + "-" + "x" * 600,
    ],
)
def test_a_malformed_traceparent_is_ignored(
    traced: Traced, collector: Any, traceparent: str, caplog: pytest.LogCaptureFixture
) -> None:
    traced.translate("x", traceparent=traceparent)
    [call] = of_calls(traced.spans())
    assert call.parent_span_id == b""
    assert call.trace_id.hex() != TRACE
    assert SECRET.encode() not in collector.requests[0].SerializeToString()
    assert not caplog.records


def test_a_call_whose_caller_does_not_sample_is_not_exported(traced: Traced) -> None:
    traced.translate("x", traceparent=UNSAMPLED)
    assert traced.spans() == []


def test_the_ratio_is_for_callers_who_have_not_decided(traced_by: Any, real_engine: Engine) -> None:
    traced = traced_by(real_engine, ratio=0.0)
    traced.translate("x")
    traced.translate("x", traceparent=SAMPLED)
    [call] = of_calls(traced.spans())
    assert call.trace_id.hex() == TRACE


def test_about_as_many_as_the_ratio_says_are_traced(traced_by: Any, engine: Any) -> None:
    traced = traced_by(engine, ratio=0.5)
    for _ in range(100):
        traced.translate("x")
    assert 20 < len(of_calls(traced.spans())) < 80


@pytest.mark.parametrize(
    ("error", "code", "number"),
    [
        (EngineError(SECRET), "INTERNAL", 13),
        (RuntimeError(SECRET), "INTERNAL", 13),
        (StalledError(SECRET), "UNAVAILABLE", 14),
    ],
)
def test_a_fault_of_the_servers_is_an_error(
    traced_by: Any, engine: Any, error: Exception, code: str, number: int
) -> None:
    engine.fails_with = error
    traced = traced_by(engine)
    with pytest.raises(grpc.RpcError):
        traced.translate("x")
    [call] = of_calls(traced.spans())
    assert (call.status.code, call.status.message) == (Status.STATUS_CODE_ERROR, code)
    assert attributes(call)["error.type"] == attributes(call)["rpc.response.status_code"] == code
    assert attributes(call)["rpc.grpc.status_code"] == number
    assert not call.events


def test_a_mistake_of_the_callers_is_no_error_of_the_servers(traced: Traced) -> None:
    with pytest.raises(grpc.RpcError):
        traced.translate("x", model=SECRET)
    [call] = traced.spans()
    assert call.status.code == Status.STATUS_CODE_UNSET
    assert attributes(call)["rpc.response.status_code"] == "NOT_FOUND"
    assert "error.type" not in attributes(call)


def test_nothing_that_a_caller_sends_is_exported(traced: Traced, collector: Any) -> None:
    metadata = (
        ("traceparent", SAMPLED),
        ("tracestate", f"vendor={SECRET}"),
        ("baggage", f"user={SECRET}"),
        ("x-other", SECRET),
    )
    for request in (
        pb.TranslateRequest(texts=[f"{SECRET}.", SECRET.upper()]),
        pb.TranslateRequest(texts=[SECRET], source_language=SECRET),
        pb.TranslateRequest(texts=[SECRET], model=SECRET),
    ):
        with contextlib.suppress(grpc.RpcError):
            traced.stub.Translate(request, metadata=metadata)
    with pytest.raises(grpc.RpcError):
        traced.channel.unary_unary(f"/dragoman.v1.TranslationService/{SECRET}")(b"", metadata=metadata)
    assert len(of_calls(traced.spans())) == 3
    exported = b"".join(request.SerializeToString() for request in collector.requests)
    assert b"shout" in exported
    assert SECRET.lower().encode() not in exported.lower()


def test_health_checks_are_not_traced(traced: Traced) -> None:
    traced.channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
    traced.stub.ListModels(pb.ListModelsRequest())
    assert [span.name for span in traced.spans()] == ["dragoman.v1.TranslationService/ListModels"]


def test_the_resource_says_who_sends_and_the_environment_may_say_more(
    collector: Any, monkeypatch: pytest.MonkeyPatch, traced_by: Any, engine: Any
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "translations")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    traced = traced_by(engine)
    traced.translate("x")
    assert traced.spans()
    [resource] = collector.requests[0].resource_spans
    told = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert told["service.name"] == "translations"
    assert told["deployment.environment.name"] == "test"
    assert told["service.version"]


def test_spans_go_by_tls_to_a_collector_whose_authority_the_environment_names(
    start_collector: Any, authority: Any, stranger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority.issue("collector")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    collector = start_collector(credentials)
    for ca, taken in ((stranger.ca, 0), (authority.ca, 1)):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(ca))
        tracing = Tracing(collector.endpoint, 1.0)
        tracing.begin("/dragoman.v1.TranslationService/Translate", None, 0.0).end(grpc.StatusCode.OK, 1.0)
        asyncio.run(tracing.close())
        assert len(collector.spans) == taken


@pytest.mark.parametrize("traceparent", [SAMPLED, UNSAMPLED, None])
def test_the_log_names_the_trace(traced_by: Any, engine: Any, traceparent: str | None) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(note_trace)
    logging.getLogger("dragoman_server").addHandler(handler)
    try:
        engine.fails_with = RuntimeError("broken")
        traced = traced_by(engine)
        with pytest.raises(grpc.RpcError):
            traced.translate("x", traceparent=traceparent)
        spans = traced.spans()
    finally:
        logging.getLogger("dragoman_server").removeHandler(handler)
    [line] = [json.loads(line) for line in stream.getvalue().splitlines() if "internal error" in line]
    assert line["trace_id"] == (TRACE if traceparent else of_calls(spans)[0].trace_id.hex())


@pytest.fixture
def silent_collector() -> Iterator[str]:
    """Takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_collector_that_does_not_answer_holds_nobody_up(
    silent_collector: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracing = Tracing(silent_collector, 1.0)
    started = time.monotonic()
    for _ in range(10_000):
        tracing.begin("/dragoman.v1.TranslationService/Translate", None, started).end(
            grpc.StatusCode.OK, time.monotonic()
        )
    assert time.monotonic() - started < 10
    closing = time.monotonic()
    asyncio.run(tracing.close())
    assert time.monotonic() - closing < 4
    assert "the last traces were not all taken within 2 s" in caplog.text
    assert len(caplog.records) < 4


def test_the_library_logs_a_line_a_minute_at_most(caplog: pytest.LogCaptureFixture) -> None:
    tracing = Tracing("http://127.0.0.1:1", 1.0)
    library = logging.getLogger("opentelemetry.exporter.otlp")
    for number in range(100):
        library.error("failed %d", number)
    asyncio.run(tracing.close())
    assert [(one.name, one.getMessage()) for one in caplog.records] == [
        ("dragoman_server.service.tracing", "traces: failed 0")
    ]
    library.error("as ever")
    assert caplog.messages[-1] == "as ever"


def test_a_setting_that_is_not_understood_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "7zip")
    with pytest.raises(ValueError, match=r"^--traces: .*7zip"):
        Tracing("http://127.0.0.1:1", 1.0)
