from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dragoman

# Serves a model that repeats its source, DELAY seconds per token, in place of a bundle's.
SCRIPT = """
import os, sys
from conftest import EchoRunner, served
from dragoman.cli import main
from dragoman_server import serve
from dragoman_server.engine import Engine
from dragoman_server.errors import BundleError
from dragoman_server.loading import LoadedModel

def load(path, config, metrics):
    if path.name == "broken":
        raise BundleError(f"{path}: no good")
    runner = EchoRunner(seconds_per_step=float(os.environ["DELAY"]))
    engine = Engine([runner], max_queue=100, bos_id=2, eos_id=3, observer=metrics.engine("echo"))
    metrics.watch("echo", engine.stats)
    return LoadedModel(served(engine, "echo"), engine)

serve.load = load
serve.find_bundles = lambda root: [root]
sys.exit(main(["serve", *sys.argv[1:]]))
"""
TESTS = Path(__file__).parents[1]

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, port: str = "0", delay: float = 0.0) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "DELAY": str(delay),
            "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)]),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, "--port", port, "--max-beam-size", "4", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ready_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_server_starts_answers_and_ends(start: Start, tmp_path: Path) -> None:
    ready_file = tmp_path / "ready"
    ready_file.write_text("left behind by another\n")
    process = start("--json", "--metrics-port", "0", "--ready-file", str(ready_file))
    ready = json.loads(ready_line(process))
    assert ready["models"] == [{"name": "echo", "version": "3"}]
    for _ in range(100):
        if ready_file.exists() and ready_file.read_text() == ready["address"] + "\n":
            break
        time.sleep(0.05)
    assert ready_file.read_text() == ready["address"] + "\n"
    with dragoman.Client(ready["address"]) as client:
        client.wait_ready(10)
        text = "Hello there.\n\n\u00dcber uns."
        assert client.translate(text).text == text
        assert "".join(client.stream(text, beam_size=1)) == text
    with urllib.request.urlopen(f"http://{ready['metrics_address']}/metrics", timeout=10) as reply:
        metrics = reply.read().decode()
    assert 'dragoman_slots_in_use{model="echo"} 0.0' in metrics
    assert 'dragoman_slots{model="echo"} 8.0' in metrics
    assert "Hello" not in metrics
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert not ready_file.exists()
    assert "Hello" not in log


def test_accepted_calls_are_finished_on_a_signal(start: Start) -> None:
    process = start(delay=0.02)
    line = ready_line(process)
    assert line.startswith("dragoman: listening on 127.0.0.1:")
    with dragoman.Client(line.split()[3].rstrip(",")) as client:
        stream = client.stream("x" * 60, beam_size=1)
        assert next(stream) == "x"
        process.send_signal(signal.SIGINT)
        assert stream.result().text == "x" * 60
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_second_signal_ends_at_once(start: Start) -> None:
    process = start("--drain-seconds", "60", delay=0.1)
    address = ready_line(process).split()[3].rstrip(",")
    with dragoman.Client(address) as client:
        stream = client.stream("x" * 60, beam_size=1)
        next(stream)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        with pytest.raises(dragoman.Unavailable):
            stream.result()


def test_an_overdue_drain_is_reported(start: Start) -> None:
    process = start("--drain-seconds", "0.1", delay=0.1)
    with dragoman.Client(ready_line(process).split()[3].rstrip(",")) as client:
        stream = client.stream("x" * 60, beam_size=1)
        next(stream)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "calls were cancelled" in log


def test_what_cannot_start_says_so_in_one_line(start: Start) -> None:
    holder = start()
    port = ready_line(holder).split()[3].rstrip(",").rpartition(":")[2]
    for process, words in (
        (start("--models", "broken"), "broken: no good"),
        (start(port=port), f"cannot listen on 127.0.0.1:{port}"),
        (start("--max-rows", "0"), "--max-rows must be at least 1"),
        (start("--device", "tpu"), "--device"),
    ):
        output, log = process.communicate(timeout=20)
        assert process.returncode == 2
        assert output == ""
        errors = [line for line in log.splitlines() if " INFO " not in line]
        assert len(errors) == 1, log
        assert errors[0].startswith("dragoman: error: ")
        assert words in errors[0]
