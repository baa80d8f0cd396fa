"""OpenTelemetry traces: a span for every call, its stages below it, for a collector that may be slow or gone.

Names and attributes are those of the semantic conventions for RPC, 1.45, and beside them those that they have
replaced, where these do not contradict them (what the conventions call `rpc/dup`). No attribute has a value
that a caller chose: no text, no metadata, no message of an error.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import threading
import time
from collections.abc import Sequence

import grpc
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dragoman_server.models import ModelDescription
from dragoman_server.translations import TextTranslation

__all__ = ["CallSpan", "Tracing"]

_log = logging.getLogger(__name__)
_LIBRARY_LOG = logging.getLogger("opentelemetry")
# Some 1,000 calls. Beyond, the oldest spans are dropped.
_MAX_QUEUE = 8192
_BATCH = 512
_SEND_EVERY_SECONDS = 1.0
_EXPORT_SECONDS = 5.0
_CLOSING_SECONDS = 2.0
_NEWS_SECONDS = 60.0
_MAX_TRACEPARENT = 512

# What the conventions take for a fault of the server's.
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class CallSpan:
    """The span of one call. Times are on the clock of `time.monotonic`.

    Args:
        tracer: Makes spans.
        method: Such as `/dragoman.v1.TranslationService/Translate`; one that the server has.
        parent: The caller's span, or nothing.
        started: When the call began.
    """

    def __init__(self, tracer: Tracer, method: str, parent: Context, started: float) -> None:
        name = method.removeprefix("/")
        self._tracer = tracer
        self._wall_clock = time.time_ns() - round(time.monotonic() * 1e9)
        self._stages: dict[str, tuple[float, float, float]] = {}
        # Attributes, for the end.
        self._found: dict[str, str | int] = {}
        self._span = tracer.start_span(
            name,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system.name": "grpc",
                "rpc.method": name,
                "rpc.system": "grpc",
                "rpc.service": name.rpartition("/")[0],
            },
            start_time=self._nanoseconds(started),
        )
        self._remote = get_current_span(parent).get_span_context().is_valid

    @property
    def is_recording(self) -> bool:
        """Whether it will be sent; where not, there is no need to tell it anything."""
        return self._span.is_recording()

    @property
    def trace_id(self) -> str:
        """In hexadecimal; empty where nobody else knows of the trace."""
        context = self._span.get_span_context()
        known = context.is_valid and (self._remote or context.trace_flags.sampled)
        return format_trace_id(context.trace_id) if known else ""

    def asked(self, model: ModelDescription, texts: int) -> None:
        """Note what the call wants translated, and by which model."""
        self._found |= {
            "dragoman.model.name": model.name,
            "dragoman.model.version": model.version,
            "dragoman.texts": texts,
        }

    def stage(self, name: str, started: float, ended: float) -> None:
        """Note that a stage went on for one of its texts or sentences; may be called often for one stage."""
        first, last, seconds = self._stages.get(name, (started, ended, 0.0))
        self._stages[name] = (min(first, started), max(last, ended), seconds + ended - started)

    def translated(self, translations: Sequence[TextTranslation]) -> None:
        """Note how much was translated."""
        self._found |= {
            "dragoman.sentences": sum(one.segments for one in translations),
            "dragoman.source_tokens": sum(one.source_tokens for one in translations),
            "dragoman.output_tokens": sum(one.hypotheses[0].output_tokens for one in translations),
        }

    def end(self, code: grpc.StatusCode, ended: float) -> None:
        """The call has ended: hand its spans over to be sent."""
        below = set_span_in_context(self._span, Context())
        for name, (first, last, seconds) in self._stages.items():
            stage = self._tracer.start_span(
                name,
                context=below,
                attributes={"dragoman.stage.seconds": seconds},
                start_time=self._nanoseconds(first),
            )
            stage.end(self._nanoseconds(last))
        self._found |= {"rpc.response.status_code": code.name, "rpc.grpc.status_code": code.value[0]}
        if code in _FAULTS:
            self._found["error.type"] = code.name
            self._span.set_status(Status(StatusCode.ERROR, code.name))
        self._span.set_attributes(self._found)
        self._span.end(self._nanoseconds(ended))

    def _nanoseconds(self, moment: float) -> int:
        """Since the epoch."""
        return self._wall_clock + round(moment * 1e9)


class Tracing:
    """Begins the spans of calls, and sends those that have ended, on a thread of its own.

    What the collector does not take is dropped: neither calls nor the server's end wait for it. Further
    settings are in the environment, under the names that OpenTelemetry gives them.

    Args:
        endpoint: http://HOST:PORT in plaintext, https://HOST:PORT by TLS.
        ratio: Share of the calls to trace, of those whose callers have not decided.

    Raises:
        ValueError: the environment has a setting that OpenTelemetry does not understand.
    """

    def __init__(self, endpoint: str, ratio: float) -> None:
        self._news = _News()
        _LIBRARY_LOG.addHandler(self._news)
        _LIBRARY_LOG.propagate = False
        resource = Resource.create(
            {"service.name": "dragoman", "service.version": importlib.metadata.version("dragoman")}
        ).merge(OTELResourceDetector().detect())
        try:
            self._exporter = OTLPSpanExporter(
                endpoint, insecure=endpoint.startswith("http://"), timeout=_EXPORT_SECONDS
            )
        except Exception as error:
            raise ValueError(f"--traces: a setting of OTEL_EXPORTER_OTLP_*: {error}") from error
        self._provider = TracerProvider(
            ParentBased(TraceIdRatioBased(ratio)), resource, shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=_MAX_QUEUE,
                max_export_batch_size=_BATCH,
                schedule_delay_millis=_SEND_EVERY_SECONDS * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("dragoman")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, traceparent: str | None, started: float) -> CallSpan:
        """A call has begun.

        Args:
            method: One that the server has.
            traceparent: The caller's, of W3C Trace Context; ignored where it is malformed.
            started: When, on the clock of `time.monotonic`.
        """
        # The library logs that a longer one is ignored: callers do not write this log.
        sound = traceparent is not None and len(traceparent) <= _MAX_TRACEPARENT
        carrier = {"traceparent": traceparent} if sound else {}
        return CallSpan(self._tracer, method, self._propagator.extract(carrier, Context()), started)

    async def close(self) -> None:
        """Send what waits, within about two seconds."""
        sending = threading.Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, _CLOSING_SECONDS)
        if sending.is_alive():
            _log.warning("the last traces were not all taken within %g s", _CLOSING_SECONDS)
            self._news.setLevel(logging.CRITICAL)  # what the library has to say of this is no news
            # Takes back what is on its way; what waits is then dropped.
            await asyncio.to_thread(self._exporter.shutdown)
            await asyncio.to_thread(sending.join, _CLOSING_SECONDS)
        _LIBRARY_LOG.removeHandler(self._news)
        _LIBRARY_LOG.propagate = True


class _News(logging.Handler):
    """Passes on one line of the library's a minute: it has several for every batch that is not taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last = -_NEWS_SECONDS

    def emit(self, record: logging.LogRecord) -> None:
        """Log the message, without a traceback, as the server's own."""
        now = time.monotonic()
        if now - self._last >= _NEWS_SECONDS:
            self._last = now
            _log.warning("traces: %s", record.getMessage())
