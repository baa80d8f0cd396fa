"""A server of a bundle in a process of its own, for the benchmarks."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen


@dataclass(frozen=True)
class Served:
    """Where a server listens."""

    address: str
    metrics_address: str

    def metrics(self) -> dict[str, float]:
        """Every sample of the Prometheus endpoint, by its name with its labels."""
        with urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}


@contextlib.contextmanager
def served(bundle: Path, *flags: str) -> Iterator[Served]:
    """Serve `bundle` on free ports of the loopback; SIGTERM must end it with exit code 0."""
    command = [sys.executable, "-c", "import sys; from dragoman.cli import main; sys.exit(main())"]
    words = [
        *command,
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
