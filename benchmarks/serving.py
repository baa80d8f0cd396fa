"""Servers in processes of their own, for the benchmarks."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

DRAGOMAN = (sys.executable, "-c", "import sys; from dragoman.cli import main; sys.exit(main())")
"""The command `dragoman` of this environment."""


@dataclass(frozen=True)
class Served:
    """Where a server listens."""

    address: str
    metrics_address: str | None

    def metrics(self) -> dict[str, float]:
        """Every sample of the Prometheus endpoint, by its name with its labels."""
        with urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}


@contextlib.contextmanager
def served(bundle: Path, *flags: str) -> Iterator[Served]:
    """Serve `bundle` on free ports of the loopback."""
    words = [
        *DRAGOMAN,
        "serve",
        "--models",
        str(bundle),
        "--port",
        "0",
        "--metrics-port",
        "0",
        "--json",
        *flags,
    ]
    with started(words) as server:
        yield server


@contextlib.contextmanager
def started(words: Sequence[str]) -> Iterator[Served]:
    """Run a server that prints its addresses as JSON once it is ready; SIGTERM must end it with code 0."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        facts = json.loads(line)
        yield Served(facts["address"], facts["metrics_address"])
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            sys.exit(f"the server ended with exit code {process.returncode}")
    finally:
        process.kill()
        process.wait()
