"""Servers without a network behind them: an engine that shouts, a runner that echoes, bytes for tokens."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from dragoman_server.config import CallLimits
from dragoman_server.engine.messages import (
    Failed,
    Finished,
    FinishReason,
    Hypothesis,
    Progress,
    Request,
    Timing,
)
from dragoman_server.engine.runner import Extent, FloatArray, IntArray, RunnerLimits, SlotCopy
from dragoman_server.errors import CancelledError, QueueFullError
from dragoman_server.metrics import CallRecord
from dragoman_server.models import ModelDescription, ModelTable, ServedModel
from dragoman_server.service.listening import Listener
from dragoman_server.service.server import GrpcServer
from dragoman_server.translator import Translator

EOS = 3
OFFSET = 4


class ByteCodec:
    """A tokenizer whose pieces are the bytes of UTF-8."""

    def encode(self, text: str) -> list[int]:
        return [OFFSET + byte for byte in text.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i - OFFSET for i in ids if i >= OFFSET).decode(errors="replace")


class ShoutingEngine:
    """Translates to upper case (ASCII only), at once, or when told to where `holding`."""

    def __init__(self) -> None:
        self.holding = False
        self.capacity = 1000
        self.finish_reason = FinishReason.STOP
        self.fails_with: Exception | None = None
        self.submitted: list[Request] = []
        self.held: list[Request] = []
        self.cancelled: list[Request] = []
        self.changed = threading.Event()

    def submit(self, request: Request) -> None:
        if len(self.held) >= self.capacity:
            raise QueueFullError(len(self.held), retry_after_seconds=0.25)
        self.submitted.append(request)
        self.held.append(request)
        if not self.holding:
            self.finish(request)
        self.changed.set()

    def cancel(self, request: Request) -> None:
        self.cancelled.append(request)
        if request in self.held:
            self.held.remove(request)
            request.notify(Failed(CancelledError("cancelled")))
        self.changed.set()

    def progress(self, request: Request, tokens: int) -> None:
        request.notify(Progress(_shouted(request)[:tokens]))

    def finish(self, request: Request) -> None:
        self.held.remove(request)
        if self.fails_with is not None:
            request.notify(Failed(self.fails_with))
            return
        best = _shouted(request)
        if request.wants_progress:
            for end in range(1, len(best), 1 + len(best) // 100):
                request.notify(Progress(best[:end]))
        ranked = [
            Hypothesis((*best, *[OFFSET + ord("!")] * rank), -1.0 - rank, -0.5 - rank, self.finish_reason)
            for rank in range(request.options.n_best)
        ]
        request.notify(Finished(tuple(ranked), Timing(queue=0.1, encode=0.2, decode=0.3)))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for what a call does to the engine."""
        for _ in range(100):
            if condition():
                return
            self.changed.wait(0.1)
            self.changed.clear()
        raise AssertionError("the engine has not got there within ten seconds")


def _shouted(request: Request) -> tuple[int, ...]:
    assert request.source[-1] == EOS
    return tuple(
        token - 32 if OFFSET + ord("a") <= token <= OFFSET + ord("z") else token
        for token in request.source[:-1]
    )


class EchoRunner:
    """A network that repeats its source, one token per step, and then ends."""

    def __init__(self, max_rows: int = 8, seconds_per_step: float = 0.0) -> None:
        self.limits = RunnerLimits(
            max_rows, max_source_tokens=64, max_target_tokens=64, vocabulary_size=OFFSET + 256
        )
        self._seconds_per_step = seconds_per_step
        self._sources: dict[int, Sequence[int]] = {}

    def fits(self, extent: Extent) -> bool:
        return extent.rows <= self.limits.max_rows

    def reserve(self, extent: Extent) -> None:
        assert self.fits(extent)

    def encode(self, sources: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> None:
        for source, held in zip(sources, slots, strict=True):
            self._sources |= dict.fromkeys(held, source)

    def step(self, tokens: IntArray, lengths: IntArray, top_k: int) -> tuple[FloatArray, IntArray]:
        time.sleep(self._seconds_per_step)
        log_probs = np.full((len(tokens), self.limits.vocabulary_size), -50.0, np.float32)
        for row, length in enumerate(lengths):
            source = self._sources[row]
            log_probs[row, source[min(length, len(source) - 1)]] = -0.1
        ids = np.argsort(-log_probs, axis=1, kind="stable")[:, :top_k]
        return np.take_along_axis(log_probs, ids, axis=1), ids

    def copy(self, copies: Sequence[SlotCopy]) -> None:
        for copy in copies:
            if copy.with_memory:
                self._sources[copy.target] = self._sources[copy.source]


def served(
    engine: Any,
    name: str = "shout",
    sources: tuple[str, ...] = ("en",),
    targets: tuple[str, ...] = ("de",),
    max_source_tokens: int = 64,
    version: str = "3",
    max_call_tokens: int = 2000,
) -> ServedModel:
    """A model that shouts."""
    description = ModelDescription(
        name=name,
        version=version,
        source_languages=sources,
        target_languages=targets,
        architecture="transformer",
        dimensions={"d_model": 8},
        precision="fp32",
        device="cpu",
        max_source_tokens=max_source_tokens,
        max_output_tokens=99,
        max_queue=50,
        manifest_sha256="0" * 64,
        provenance="made up",
        licence="CC0-1.0",
    )
    codec = ByteCodec()
    translator = Translator(
        *(engine, codec, codec),
        eos_id=EOS,
        max_source_tokens=max_source_tokens,
        max_segments=50,
        max_call_tokens=max_call_tokens,
    )
    return ServedModel(description, translator)


class ServerThread:
    """A real gRPC server on a port of its own, on an event loop of its own."""

    def __init__(
        self,
        *models: ServedModel,
        limits: CallLimits | None = None,
        listener: Listener | None = None,
        tracing: Any = None,
    ) -> None:
        self.calls: list[tuple[str, str]] = []
        """Method and status code of every call that has ended."""
        self._models = ModelTable(models)
        self._limits = limits or CallLimits(
            max_texts=4, max_text_bytes=1000, max_beam_size=6, max_call_tokens=2000, max_concurrent_calls=40
        )
        self._listener = listener or Listener()
        self._tracing = tracing
        self._started = threading.Event()
        self._stopped: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._started.wait(10)

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self.grpc = GrpcServer(self._listener, self._limits, self._observe, tracing=self._tracing)
        self.address = self.grpc.address
        await self.grpc.start(self._models)
        self.grpc.open()
        self._started.set()
        await self._stopped.wait()

    def _observe(self, call: CallRecord) -> None:
        assert call.seconds >= 0
        self.calls.append((call.method.rpartition("/")[2], call.code))

    def stop(self, drain_seconds: float = 0.0) -> bool:
        """Drain, as on SIGTERM."""
        return asyncio.run_coroutine_threadsafe(self.grpc.stop(drain_seconds), self.loop).result(20)

    def close(self) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def engine() -> ShoutingEngine:
    return ShoutingEngine()


@pytest.fixture
def echo_runner() -> type[EchoRunner]:
    return EchoRunner


@pytest.fixture
def model() -> Callable[..., ServedModel]:
    return served


@pytest.fixture
def start_server() -> Iterator[Callable[..., ServerThread]]:
    """Starts servers that stop with the test."""
    servers: list[ServerThread] = []

    def start(*models: ServedModel, **options: Any) -> ServerThread:
        servers.append(ServerThread(*models, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def server(engine: ShoutingEngine, start_server: Callable[..., ServerThread]) -> ServerThread:
    """One server with one model that shouts."""
    return start_server(served(engine))


class Authority:
    """Issues certificates, as files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for the loopback, and its key."""
        issued = self._ca.issue_cert("127.0.0.1", "localhost")
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return certificate, key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """Whom nobody trusts."""
    (tmp_path / "stranger").mkdir()
    return Authority(tmp_path / "stranger")


@dataclass
class Figures:
    """What the cases of one run have counted and measured."""

    rows: list[dict[str, object]] = field(default_factory=list)

    def __call__(self, case: str, figure: str, value: float | str, bound: str = "") -> None:
        """Note one figure; `bound` says in words what was to hold."""
        self.rows.append({"case": case, "figure": figure, "value": value, "bound": bound})


_FIGURES = Figures()


@pytest.fixture(scope="session")
def figures() -> Figures:
    """`figures("readers that never read", "others' p99 / ms", 12.3, "at most 10 % above 11.9")`."""
    return _FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures, and write them to the file that DRAGOMAN_FIGURES names."""
    if not _FIGURES.rows:
        return
    terminalreporter.section("figures")
    for row in _FIGURES.rows:
        bound = f"  ({row['bound']})" if row["bound"] else ""
        terminalreporter.write_line(f"{row['case']}: {row['figure']}: {row['value']}{bound}")
    if "DRAGOMAN_FIGURES" in os.environ:
        file = Path(os.environ["DRAGOMAN_FIGURES"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_FIGURES.rows, indent=2) + "\n")
