"""Real server processes, what has to hold after every fault, and figures of what happened.

`make test` runs these cases with small counts and asserts nothing that depends on the machine's speed;
`make faults` (DRAGOMAN_FAULT_SUITE=full) runs them with the stated counts and bounds, and writes the figures.
The model is the starter, or those below the directory that DRAGOMAN_FAULT_SUITE_MODELS names.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

import dragoman
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub
from dragoman_server.bundle import Bundle, find_bundles
from dragoman_server.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("DRAGOMAN_FAULT_SUITE_MODELS", ROOT / "starter"))
DRAGOMAN = [sys.executable, "-c", "import sys; from dragoman.cli import main; sys.exit(main())"]
USUAL_TEXT = "The old man reads a book, and his daughter sings."
SETTLE_SECONDS = 10.0

Serving = Callable[..., AbstractContextManager["Server"]]


@dataclass
class Server:
    """A server process of this test's own."""

    process: subprocess.Popen[str]
    address: str
    metrics_address: str
    admin_address: str | None
    log: Path
    """Its standard error."""
    usual: str = ""
    """What it made of the usual text when it was new."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def metrics(self) -> dict[str, float]:
        """Every sample by its name, the sum over all labels."""
        sums: dict[str, float] = {}
        for sample in self._samples():
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return sums

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """The samples of one name, summed by the values of one label."""
        sums: dict[str, float] = {}
        for sample in self._samples():
            if sample.name == name:
                sums[sample.labels[label]] = sums.get(sample.labels[label], 0.0) + sample.value
        return sums

    def _samples(self) -> list[Sample]:
        with urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def held(self) -> dict[str, float]:
        """What calls hold while they are in progress: nothing of it may stay behind."""
        now = self.metrics()
        return {
            name: now[f"dragoman_{name}"] for name in ("slots_in_use", "queue_depth", "calls_in_progress")
        }

    def tasks(self) -> int:
        """Tasks on the event loop."""
        return int(self.metrics()["dragoman_tasks"])

    def memory_mib(self) -> float:
        """Resident."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def translation(self) -> str:
        """The usual text's, with its exact score, by a client of its own."""
        with dragoman.Client(self.address) as client:
            best = client.translate(USUAL_TEXT, timeout=30).hypotheses[0]
        return f"{best.text} {best.score!r}"

    @contextlib.contextmanager
    def channel(self, *options: tuple[str, int]) -> Iterator[grpc.Channel]:
        """A connection of its own, without retries: what a call on it ends with is what the server said."""
        own = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), *options]
        with grpc.insecure_channel(self.address, options=own) as channel:
            yield channel

    @contextlib.contextmanager
    def stub(self, *options: tuple[str, int]) -> Iterator[TranslationServiceStub]:
        """The service's methods, over a connection of their own."""
        with self.channel(*options) as channel:
            yield TranslationServiceStub(channel)

    def health(self, service: str = "") -> str:
        """What a health check of that service says."""
        with self.channel() as channel:
            reply = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=10)
        return HealthCheckResponse.ServingStatus.Name(reply.status)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = SETTLE_SECONDS) -> float:
        """Wait for `condition`; how long that took."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, f"after {seconds:g} s still not: {what}"
            assert self.process.poll() is None, f"the server has ended: {self.log.read_text()[-2000:]}"
            time.sleep(0.01)
        return time.monotonic() - started

    @contextlib.contextmanager
    def unharmed(self, *, memory_mib: float = 50.0, seconds: float = SETTLE_SECONDS) -> Iterator[None]:
        """Nothing stays behind of what happens inside; the usual translation is the same to the byte."""
        assert self.translation() == self.usual
        memory, tasks = self.memory_mib(), self.tasks()
        yield
        self.wait_until(lambda: not any(self.held().values()), "slots, queue and calls empty", seconds)
        self.wait_until(lambda: self.tasks() <= tasks, f"no more than {tasks} tasks", seconds)
        assert self.translation() == self.usual
        bound = memory + memory_mib
        self.wait_until(lambda: self.memory_mib() <= bound, f"memory back below {bound:.0f} MiB", seconds)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether to run the stated counts and to hold to bounds of time."""
    return os.environ.get("DRAGOMAN_FAULT_SUITE") == "full"


@contextlib.contextmanager
def served(
    log: Path, *flags: object, models: Path = MODELS, environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """Start a server, whose standard error goes to `log`, and end it whatever happens.

    Flags given override the usual ones: free ports for calls and metrics, one worker with one thread.
    """
    usual = {"--models": models, "--port": 0, "--metrics-port": 0, "--workers": 1, "--threads": 1}
    words = [word for flag in usual.items() if flag[0] not in flags for word in flag]
    command = [*DRAGOMAN, "serve", *map(str, words), *map(str, flags), "--json"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the server did not start: {log.read_text()[-2000:]}"
        told = json.loads(line)
        server = Server(process, told["address"], told["metrics_address"], told["admin_address"], log)
        server.usual = server.translation()
        yield server
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Serving:
    """`with serving("--max-rows", 8, environment={...}) as server:` is `served`, with a log of its own."""

    def start(*flags: object, **others: object) -> AbstractContextManager[Server]:
        return served(tmp_path_factory.mktemp("server") / "log", *flags, **others)

    return start


def tokens_of(text: str) -> list[int]:
    """The ids of a text, by the tokenizer of the model that is served."""
    [(path, *_)] = [list(versions.values()) for versions in find_bundles(MODELS).values()]
    bundle = Bundle.open(path)
    tokenizer = Tokenizer(bundle.read(bundle.manifest.tokenizers.source), bundle.manifest.special_ids)
    return tokenizer.encode(text)


@pytest.fixture(scope="session")
def token_of() -> Callable[[str], int]:
    """The first token of a word, which no usual text has: faults can be told to strike where it stands."""

    def find(word: str) -> int:
        token = tokens_of(word)[0]
        assert token not in tokens_of(USUAL_TEXT)
        return token

    return find
