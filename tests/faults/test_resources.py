"""A full disk, files that cannot be written, few descriptors, little memory, a wall clock that jumps."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import dragoman

LITTLE_MEMORY = 480 * 2**20
"""Address space: enough to start, not for a large batch."""
STARTER = Path(__file__).parents[2] / "starter"
# Limits that hold for a server alone, and a wall clock that goes back an hour with every look at it.
SCRIPT = """
import itertools, resource, sys, time
from dragoman.cli import main
hours = itertools.count()
if sys.argv[1] == "clock":
    time.time = lambda: 1e9 - 3600.0 * next(hours)
elif sys.argv[1] != "none":
    resource.setrlimit(getattr(resource, "RLIMIT_" + sys.argv[1]), (int(sys.argv[2]),) * 2)
sys.exit(main(["serve", "--port", "0", "--workers", "1", "--threads", "1", "--json", *sys.argv[3:]]))
"""


@contextlib.contextmanager
def starting(
    limit: str = "none", most: int = 0, *flags: str, errors: Path | None = None, output: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SCRIPT, limit, str(most), "--models", str(STARTER), *flags]
    with contextlib.ExitStack() as stack:
        streams = [
            subprocess.PIPE if path is None else stack.enter_context(path.open("w"))
            for path in (output, errors)
        ]
        process = stack.enter_context(
            subprocess.Popen(command, stdout=streams[0], stderr=streams[1], text=True)
        )
        try:
            yield process
        finally:
            process.kill()


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return str(json.loads(process.stdout.readline())["address"])


def assert_translates(address: str) -> None:
    with dragoman.Client(address) as client:
        assert client.translate("Hello!", timeout=30).text


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    with starting(errors=Path("/dev/full")) as process:
        assert_translates(address_of(process))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_ready_line_that_cannot_be_written_is_logged(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with starting("none", 0, "--ready-file", str(ready), output=Path("/dev/full")) as process:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.05)
        assert_translates(ready.read_text().strip())
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "cannot write so to standard output: No space left on device" in log


@pytest.mark.parametrize("path", ["/proc/ready", "/dev/null/ready"])
def test_a_ready_file_that_cannot_be_written_is_refused_at_once(path: str) -> None:
    with starting("none", 0, "--ready-file", path) as process:
        output, log = process.communicate(timeout=30)
    assert (process.returncode, output) == (2, "")
    [line] = log.splitlines()
    assert line.startswith(f"dragoman: error: cannot write --ready-file {path}: ")


def test_more_connections_than_descriptors_are_survived() -> None:
    with starting("NOFILE", 64) as process:
        address = address_of(process)
        host, _, port = address.rpartition(":")
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(socket.create_connection((host, int(port))))
            time.sleep(0.5)
            assert process.poll() is None
        assert_translates(address)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_little_memory_costs_the_call_that_needs_much(tmp_path: Path) -> None:
    """Below what the libraries need to start they end the process themselves: that is not tried here."""
    flags = ("--max-rows", "4096", "--cache-memory-mib", "65536")
    with starting("AS", LITTLE_MEMORY, *flags, errors=tmp_path / "log") as process:
        address = address_of(process)
        outcomes = set()
        with dragoman.Client(address, timeout=60) as client:
            for count in (1, 128):
                try:
                    client.translate(
                        ["The man reads a book, " * 20] * count, beam_size=8, max_output_tokens=20
                    )
                    outcomes.add("OK")
                except dragoman.DragomanError as error:
                    outcomes.add(type(error).__name__)
        assert process.poll() is None
        assert outcomes <= {"OK", "ServerError"}
        assert_translates(address)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_deadlines_do_not_follow_the_wall_clock() -> None:
    with starting("clock") as process:
        address = address_of(process)
        with dragoman.Client(address, timeout=30) as client:
            assert client.translate("Hello!").text
            assert "".join(client.stream("Hello!"))
            with pytest.raises(dragoman.DragomanError):
                client.translate("The man who reads a book sees the dog. " * 500, timeout=0.05)
            assert client.translate("Hello!").timing.total_seconds >= 0.0
