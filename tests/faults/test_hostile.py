"""Clients that mean harm: the server stays, its memory stays, and others hardly notice."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

import dragoman
from dragoman.v1.translation_pb2 import TranslateRequest

ATTACKS = Path(__file__).parent / "attacks.py"
TRANSLATE = "/dragoman.v1.TranslationService/Translate"
USUAL_TEXT = "The old man reads a book, and his daughter sings."
USUAL = TranslateRequest(texts=[USUAL_TEXT])
MEMORY_MIB = 50.0
LOOSE_MEMORY_MIB = 100.0
"""Of the short cases, which any machine is to pass."""


@contextlib.contextmanager
def attacked(name: str, address: str, count: int) -> Iterator[threading.Event]:
    """A hostile process at work; the event says that it has done its round once."""
    host, _, port = address.rpartition(":")
    command = [sys.executable, str(ATTACKS), name, host, port, str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    done = threading.Event()

    def read() -> None:
        for _ in process.stdout:
            done.set()

    reading = threading.Thread(target=read)
    reading.start()
    try:
        yield done
        assert process.poll() is None, "the hostile process has failed"
    finally:
        process.kill()
        process.wait()
        reading.join()
        process.stdout.close()


@dataclass
class Others:
    """What became of another client's calls, and the most memory that the server took meanwhile."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    memory_mib: float = 0.0

    @property
    def p99_ms(self) -> float:
        return 1000 * sorted(self.seconds)[int(0.99 * len(self.seconds))]


def others(server, calls: int, until: threading.Event | None = None) -> Others:
    """Call with the client as it is shipped, one call after the other, so many times, and until then."""
    found, started = Others(), time.monotonic()
    with dragoman.Client(server.address) as client:
        while len(found.seconds) < calls or not (until is None or until.is_set()):
            assert time.monotonic() - started < 120, "the hostile process does not get through"
            begun = time.monotonic()
            try:
                client.translate(USUAL_TEXT, timeout=30)
            except dragoman.DragomanError:
                found.failed += 1
            found.seconds.append(time.monotonic() - begun)
            found.memory_mib = max(found.memory_mib, server.memory_mib())
    return found


@pytest.mark.parametrize(
    ("name", "count", "few"),
    [
        ("resets", 10_000, 3_000),
        ("endless_headers", 10_000, 500),
        ("idle", 1_000, 100),
    ],
)
def test_floods_are_stood(serving, figures, full, name, count, few) -> None:
    flooded(serving, figures, full, name, count if full else few)


@pytest.mark.parametrize("name", ["many_headers", "repeated_header"])
def test_floods_of_header_blocks(serving, figures, full, name) -> None:
    """gRPC hands calls with too many headers to Python all the same: `docs/security.md` has what follows."""
    if not full:
        pytest.skip("not stood: see docs/security.md; make faults measures it")
    flooded(serving, figures, full, name, 2_000)


def flooded(serving, figures, full, name, count) -> None:
    calls, memory_mib = (500, MEMORY_MIB) if full else (20, LOOSE_MEMORY_MIB)
    with serving() as server, server.unharmed(memory_mib=memory_mib):
        alone = others(server, calls)
        with attacked(name, server.address, count) as done:
            beside = others(server, calls, until=done)
        case, grown = f"{count:,} {name.replace('_', ' ')}", beside.memory_mib - alone.memory_mib
        figures(case, "memory grown by / MiB", round(grown, 1), f"{MEMORY_MIB:g} at most")
        figures(case, "others' calls failed", f"{beside.failed} of {len(beside.seconds)}", "none")
        figures(case, "others' p99 / ms", round(beside.p99_ms, 1), f"at most 2 x {alone.p99_ms:.1f}")
        assert grown <= memory_mib
        assert beside.failed < len(beside.seconds)
        if full:
            assert beside.failed == 0
            assert beside.p99_ms <= 2 * alone.p99_ms


def code_of(call) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name


def test_a_gzip_bomb_is_not_unpacked(serving, figures, full) -> None:
    """60 MB of one character in some 60 KB."""
    bomb = TranslateRequest(texts=["x" * 60_000_000]).SerializeToString()
    with serving() as server, server.unharmed(memory_mib=MEMORY_MIB), server.channel() as channel:
        before = server.memory_mib()
        translate = channel.unary_unary(TRANSLATE)
        for _ in range(10 if full else 2):
            assert code_of(lambda: translate(bomb, timeout=30, compression=grpc.Compression.Gzip)) == (
                "RESOURCE_EXHAUSTED"
            )
        figures("gzip bombs", "memory grown by / MiB", round(server.memory_mib() - before, 1), "50 at most")


@pytest.mark.parametrize("size", [20_000, 100_000, 1_000_000])
def test_oversized_metadata_is_refused(serving, size) -> None:
    with serving() as server, server.unharmed(memory_mib=MEMORY_MIB), server.stub() as stub:
        for _ in range(20):
            metadata = (("x-filler", "y" * size),)
            assert code_of(lambda: stub.Translate(USUAL, timeout=30, metadata=metadata)) in {  # noqa: B023
                "RESOURCE_EXHAUSTED",
                "UNAVAILABLE",
            }
