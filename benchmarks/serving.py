"""Servers in processes of their own, for the benchmarks."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

DRAGOMAN = (sys.executable, "-c", "import sys; from dragoman.cli import main; sys.exit(main())")
"""The command `dragoman` of this environment."""


def peer_arguments(description: str) -> argparse.ArgumentParser:
    """What every benchmark needs that serves our weights here and by CTranslate2."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True, help="exported from it")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--beam-size", type=int, default=1)
    return parser


@dataclass(frozen=True)
class Served:
    """Where a server listens."""

    address: str
    metrics_address: str | None
    process: int
    """Its id."""
    admin_address: str | None = None

    def memory(self) -> dict[str, float]:
        """Resident memory in MB: now, and at its highest."""
        status = Path(f"/proc/{self.process}/status").read_text()
        kilobytes = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
        return {"now": int(kilobytes["VmRSS"]) / 1e3, "peak": int(kilobytes["VmHWM"]) / 1e3}

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
def ctranslate2_served(checkpoint: Path, bundle: Path, precision: str, window_ms: float) -> Iterator[Served]:
    """Serve the same weights by CTranslate2, gathering requests for `window_ms`."""
    scripts = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "ctranslate2")
        convert = [sys.executable, str(scripts / "ctranslate2_convert.py")]
        subprocess.run([*convert, "--checkpoint", str(checkpoint), "--out", model], check=True)
        words = [sys.executable, str(scripts / "ctranslate2_server.py"), "--model", model]
        words += ["--bundle", str(bundle), "--precision", precision, "--window-ms", str(window_ms)]
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
        yield Served(facts["address"], facts["metrics_address"], process.pid, facts.get("admin_address"))
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            sys.exit(f"the server ended with exit code {process.returncode}")
    finally:
        process.kill()
        process.wait()
