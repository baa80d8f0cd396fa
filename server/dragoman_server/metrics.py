"""Prometheus metrics. Labels are models, methods, status codes and outcomes: nothing a caller can invent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from dragoman_server.engine import EncodeRecord, EngineStats, FinishRecord, StepRecord
from dragoman_server.models import ModelDescription

__all__ = ["DENIED", "CallRecord", "EngineMetrics", "MetricsEndpoint", "ServerMetrics"]

_CALL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEP_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


DENIED = "denied"
"""Stands for the method of calls without a token that counts: what they asked for is theirs to choose."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """How a call ended."""

    method: str
    """One that the server has, such as `/dragoman.v1.TranslationService/Translate`, or `DENIED`."""
    code: str
    """The name of its status."""
    seconds: float
    caller: str
    """The name of its token, or the other end of its connection; not for a label."""
    model: str = ""
    """The name of the model that it was given; empty where none was found."""


class ServerMetrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._calls = self._counter("calls", "Calls that have ended, by status code.", "method", "code")
        self._call_seconds = Histogram(
            "dragoman_call_seconds",
            "Duration of calls.",
            ("method",),
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._text_seconds = Histogram(
            "dragoman_text_seconds",
            "Time of a call outside the engine, by stage: tokenise, detokenise.",
            ("model", "stage"),
            buckets=_STEP_SECONDS,
            registry=self.registry,
        )
        self._refusals = self._counter(
            "refusals", "Segments turned away at once, by cause: queue_full, deadline.", "model", "cause"
        )
        self._segments = self._counter("segments", "Segments that have ended.", "model", "outcome")
        self._row_steps = self._counter(
            "row_steps", "Rows run for ended segments, summed over decode steps.", "model", "outcome"
        )
        self._source_tokens = self._counter("source_tokens", "Source tokens of ended segments.", "model")
        self._output_tokens = self._counter("output_tokens", "Output tokens of ended segments.", "model")
        self._encoder_tokens = self._counter("encoder_tokens", "Source tokens encoded.", "model")
        self._encoder_padding = self._counter("encoder_padding", "Padding positions encoded.", "model")
        self._step_rows = self._counter("step_rows", "Rows run by decode steps.", "model")
        self._padded_rows = self._counter("step_padded_rows", "Rows among them with no hypothesis.", "model")
        self._queue_seconds = self._histogram("queue_seconds", "Waiting time of segments.", _CALL_SECONDS)
        self._encode_seconds = self._histogram("encode_seconds", "Time of encoder runs.", _STEP_SECONDS)
        self._step_seconds = self._histogram("step_seconds", "Time of decode steps.", _STEP_SECONDS)
        self._rows_per_step = self._histogram("rows_per_step", "Rows that a decode step ran.", _ROWS)
        self._waiting = self._gauge("queue_depth", "Segments that wait for slots.")
        self._slots_in_use = self._gauge("slots_in_use", "Slots that hold a hypothesis.")
        self._slots = self._gauge("slots", "Slots in all.")
        self._info = Gauge(
            "dragoman_model_info",
            "1 for what is served.",
            ("model", "version", "precision", "device"),
            registry=self.registry,
        )
        self.ended_calls = 0
        """Of all methods."""
        self._served: dict[str, tuple[str, str, str, str]] = {}
        self._stalled = self._gauge("stalled_workers", "Decode threads that stand still.")

    def watch_server(self, calls_in_progress: Callable[[], int], tasks: Callable[[], int]) -> None:
        """Read what the service holds whenever metrics are asked for."""
        for name, help_text, read in (
            ("calls_in_progress", "Calls that have begun and not ended.", calls_in_progress),
            ("tasks", "Tasks on the event loop; constant while no call is in progress.", tasks),
        ):
            Gauge(f"dragoman_{name}", help_text, registry=self.registry).set_function(read)

    def observe_call(self, call: CallRecord) -> None:
        """Count a call that has ended."""
        self.ended_calls += 1
        self._calls.labels(call.method, call.code).inc()
        self._call_seconds.labels(call.method).observe(call.seconds)

    def engine(self, model: str) -> EngineMetrics:
        """The observer of the engine of `model`."""
        return EngineMetrics(
            segments=self._segments,
            refusals=self._refusals,
            row_steps=self._row_steps,
            model=model,
            source_tokens=self._source_tokens.labels(model),
            output_tokens=self._output_tokens.labels(model),
            encoder_tokens=self._encoder_tokens.labels(model),
            encoder_padding=self._encoder_padding.labels(model),
            step_rows=self._step_rows.labels(model),
            padded_rows=self._padded_rows.labels(model),
            queue_seconds=self._queue_seconds.labels(model),
            encode_seconds=self._encode_seconds.labels(model),
            step_seconds=self._step_seconds.labels(model),
            rows_per_step=self._rows_per_step.labels(model),
        )

    def observe_text(self, model: str) -> Callable[[str, float], None]:
        """What is told of the stages of texts of `model`, and of the seconds that each took."""
        return lambda stage, seconds: self._text_seconds.labels(model, stage).observe(seconds)

    def watch(self, served: ModelDescription, stats: Callable[[], EngineStats]) -> None:
        """Say what is served under its name, and read its engine, and no other, whenever asked for."""
        model = served.name
        self._forget(model)
        self._served[model] = (model, served.version, served.precision, served.device)
        self._info.labels(*self._served[model]).set(1)
        self._waiting.labels(model).set_function(lambda: stats().waiting)
        self._slots_in_use.labels(model).set_function(lambda: stats().slots_in_use)
        self._slots.labels(model).set_function(lambda: stats().slots)
        self._stalled.labels(model).set_function(lambda: stats().stalled_workers)

    def unwatch(self, model: str) -> None:
        """Let go of the engine of `model`; what was counted stays."""
        for gauge in (self._waiting, self._slots_in_use, self._slots, self._stalled):
            gauge.remove(model)
        self._forget(model)

    def _forget(self, model: str) -> None:
        if model in self._served:
            self._info.remove(*self._served.pop(model))

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"dragoman_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"dragoman_{name}", help_text, ("model",), buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"dragoman_{name}", help_text, ("model",), registry=self.registry)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """Takes the records of one engine: an `engine.Observer`, called on the engine's threads."""

    segments: Counter
    refusals: Counter
    row_steps: Counter
    model: str
    source_tokens: Counter
    output_tokens: Counter
    encoder_tokens: Counter
    encoder_padding: Counter
    step_rows: Counter
    padded_rows: Counter
    queue_seconds: Histogram
    encode_seconds: Histogram
    step_seconds: Histogram
    rows_per_step: Histogram

    def on_refused(self, cause: str) -> None:
        """Count a segment that was turned away."""
        self.refusals.labels(self.model, cause).inc()

    def on_encode(self, record: EncodeRecord) -> None:
        """Count an encoder batch."""
        self.encoder_tokens.inc(record.tokens)
        self.encoder_padding.inc(record.padding)
        self.encode_seconds.observe(record.seconds)

    def on_step(self, record: StepRecord) -> None:
        """Count a decode step."""
        self.step_rows.inc(record.rows)
        self.padded_rows.inc(record.padded_rows)
        self.rows_per_step.observe(record.rows)
        self.step_seconds.observe(record.seconds)

    def on_finished(self, record: FinishRecord) -> None:
        """Count a segment's end."""
        self.segments.labels(self.model, record.outcome.value).inc()
        self.row_steps.labels(self.model, record.outcome.value).inc(record.row_steps)
        self.source_tokens.inc(record.source_tokens)
        self.output_tokens.inc(record.output_tokens)
        if record.timing is not None:
            self.queue_seconds.observe(record.timing.queue)


class MetricsEndpoint:
    """Serves metrics over HTTP on a thread of its own, until closed.

    Args:
        registry: What to serve.
        host: Address to listen on.
        port: Port; 0 for any free one.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._server, self._thread = start_http_server(port, host, registry)
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
