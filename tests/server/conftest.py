"""A scripted language model, requests that remember their events, and a collector of traces."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import lru_cache
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from dragoman_server.engine.messages import (
    DecodingOptions,
    Event,
    Failed,
    Finished,
    Progress,
    Request,
    output_limit,
)
from dragoman_server.engine.runner import Extent, FloatArray, IntArray, RunnerLimits, SlotCopy
from dragoman_server.engine.scheduler import Scheduler
from dragoman_server.engine.shared_queue import SharedQueue
from dragoman_server.engine.telemetry import Observer, Telemetry
from dragoman_server.engine.worker import Worker

BOS, EOS, POISON = 1, 2, -7


@lru_cache(maxsize=100_000)
def log_probs_after(source: tuple[int, ...], history: tuple[int, ...], vocabulary_size: int) -> FloatArray:
    """Log-probabilities `[vocabulary_size]` that a hash of source and history decides.

    They are multiples of a quarter, which add up exactly, so that ties are frequent and real.
    """
    noise = np.random.default_rng(zlib.crc32(repr((source, history)).encode()))
    result = -0.25 * noise.integers(1, 16, vocabulary_size).astype(np.float32)
    result[[0, BOS]] = -np.inf
    return result


class ScriptedRunner:
    """Keeps source and history per slot, so that a wrong or missing slot copy changes the translation."""

    def __init__(
        self,
        max_rows: int = 8,
        vocabulary_size: int = 9,
        max_source: int = 64,
        max_target: int = 40,
        max_cells: float = math.inf,
    ) -> None:
        self.limits = RunnerLimits(max_rows, max_source, max_target, vocabulary_size)
        self.memory: list[tuple[int, ...] | None] = [None] * max_rows
        self.history = np.full((max_rows, max_target), POISON, dtype=np.int64)
        self.max_cells = max_cells
        """Positions of all rows together, of source and history, that there is memory for."""
        self.reserved = Extent(0, 0, 0)
        self.encoded: list[list[tuple[int, ...]]] = []
        self.copied: list[SlotCopy] = []
        self.rows: list[int] = []

    def fits(self, extent: Extent) -> bool:
        cells = extent.rows * (extent.positions + extent.source_positions)
        return extent.rows <= self.limits.max_rows and cells <= self.max_cells

    def reserve(self, extent: Extent) -> None:
        """What lies beyond `extent` is lost."""
        assert self.fits(extent)
        self.reserved = extent
        self.memory[extent.rows :] = [None] * (self.limits.max_rows - extent.rows)
        self.history[extent.rows :] = POISON
        self.history[:, extent.positions :] = POISON

    def encode(self, sources: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> None:
        self._grow(Extent(1 + max(map(max, slots)), 1, max(map(len, sources))))
        self.encoded.append([tuple(source) for source in sources])
        for source, held in zip(sources, slots, strict=True):
            for slot in held:
                self.memory[slot] = tuple(source)
                self.history[slot] = POISON

    def step(self, tokens: IntArray, lengths: IntArray, top_k: int) -> tuple[FloatArray, IntArray]:
        assert 1 <= len(tokens) == len(lengths) <= self.limits.max_rows
        assert top_k <= self.limits.vocabulary_size
        self._grow(Extent(len(tokens), 1 + int(lengths.max()), 1))
        self.rows.append(len(tokens))
        results = [self._row(slot, *row) for slot, row in enumerate(zip(tokens, lengths, strict=True))]
        log_probs = np.stack(results)
        ids = np.argsort(-log_probs, axis=1, kind="stable")[:, :top_k]
        return np.take_along_axis(log_probs, ids, axis=1), ids

    def copy(self, copies: Sequence[SlotCopy]) -> None:
        assert not {copy.source for copy in copies} & {copy.target for copy in copies}
        self.copied += copies
        for copy in copies:
            if copy.with_memory:
                self.memory[copy.target] = self.memory[copy.source]
            positions = slice(copy.start, copy.stop)
            self.history[copy.target, positions] = self.history[copy.source, positions]

    def _grow(self, needed: Extent) -> None:
        self.reserved = Extent(*map(max, zip(astuple(self.reserved), astuple(needed), strict=True)))
        assert self.fits(self.reserved)

    def _row(self, slot: int, token: int, length: int) -> FloatArray:
        source = self.memory[slot]
        assert source is not None
        self.history[slot, length] = token
        history = tuple(self.history[slot, : length + 1].tolist())
        return log_probs_after(source, history, self.limits.vocabulary_size)


class EndlessRunner(ScriptedRunner):
    """A model that never ends a sentence: a request runs to its bound."""

    def step(self, tokens: IntArray, lengths: IntArray, top_k: int) -> tuple[FloatArray, IntArray]:
        log_probs, ids = super().step(tokens, lengths, top_k)
        return log_probs, np.where(ids == EOS, 3, ids)


class Caller:
    """A request and what it was told."""

    def __init__(
        self,
        source: tuple[int, ...],
        options: DecodingOptions | None = None,
        *,
        deadline: float | None = None,
        wants_progress: bool = False,
    ) -> None:
        self.events: list[Event] = []
        options = options or DecodingOptions()
        self.request = Request(source, options, self.events.append, deadline, wants_progress)
        # As the engine sets it at admission, for the tests beneath the engine.
        self.request.max_output_tokens = options.max_output_tokens or min(output_limit(len(source)), 40)

    @property
    def ends(self) -> list[Finished | Failed]:
        return [event for event in self.events if not isinstance(event, Progress)]

    @property
    def end(self) -> Finished | Failed:
        (only,) = self.ends
        assert self.events[-1] is only
        return only

    @property
    def progress(self) -> list[tuple[int, ...]]:
        return [event.tokens for event in self.events if isinstance(event, Progress)]


class Bench:
    """One worker, stepped by hand, and its queue; `now` is the time."""

    def __init__(self, runner: ScriptedRunner, observer: Observer | None = None) -> None:
        self.now = 0.0
        self.runner = runner
        self.queue = SharedQueue(Scheduler(max_queue=1000))
        self.telemetry = Telemetry(observer)
        self.worker = Worker(
            runner, self.queue, self.telemetry, bos_id=BOS, eos_id=EOS, clock=lambda: self.now
        )

    def put(self, *callers: Caller) -> None:
        for one in callers:
            one.request.arrived = self.now
            self.queue.put(one.request)

    def finish(self) -> None:
        for _ in range(2000):
            if self.queue.unanswered == 0:
                return
            self.worker.step()
        pytest.fail("requests without an answer")


@pytest.fixture(scope="session")
def scripted_runner() -> type[ScriptedRunner]:
    return ScriptedRunner


@pytest.fixture(scope="session")
def caller() -> type[Caller]:
    return Caller


@pytest.fixture(scope="session")
def endless_runner() -> type[EndlessRunner]:
    return EndlessRunner


@pytest.fixture(scope="session")
def bench_of() -> type[Bench]:
    return Bench


class Collector(TraceServiceServicer):
    """Takes spans, by OTLP over gRPC, on a port of its own."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self._server)
        if credentials is None:
            self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        else:
            self.endpoint = f"https://127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        self._server.start()

    def Export(  # noqa: N802 - the generated base class names it
        self, request: ExportTraceServiceRequest, context: Any
    ) -> ExportTraceServiceResponse:
        self.requests.append(request)
        return ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def close(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def start_collector() -> Iterator[Callable[..., Collector]]:
    """Starts collectors that stop with the test."""
    with contextlib.ExitStack() as stack:

        def start(*credentials: grpc.ServerCredentials) -> Collector:
            collector = Collector(*credentials)
            stack.callback(collector.close)
            return collector

        yield start


@pytest.fixture
def collector(start_collector: Callable[..., Collector]) -> Collector:
    return start_collector()
