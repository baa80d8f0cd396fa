from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

import dragoman
from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import TranslationServiceStub

# Serves a model that repeats its source, DELAY seconds per token, in place of a bundle's. Version 9 loads for
# ten minutes. The package MISSING is not installed.
SCRIPT = """
import os, sys, time
if "MISSING" in os.environ:
    sys.modules[os.environ["MISSING"]] = None
from conftest import EchoRunner, served
from dragoman.cli import main
from dragoman_server import repository
from dragoman_server.engine import Engine
from dragoman_server.errors import BundleError
from dragoman_server.loading import LoadedModel

def load(path, config, metrics):
    if path.parent.name == "broken":
        raise BundleError(f"{path}: no good")
    if path.name == "9":
        time.sleep(600)
    runner = EchoRunner(seconds_per_step=float(os.environ["DELAY"]))
    engine = Engine([runner], max_queue=100, bos_id=2, eos_id=3, observer=metrics.engine("echo"))
    return LoadedModel(served(engine, "echo", version=path.name), engine)

repository.load = load
sys.exit(main(["serve", *sys.argv[1:]]))
"""
TESTS = Path(__file__).parents[1]

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models" / "echo" / "3").mkdir(parents=True)
    return tmp_path / "models"


@pytest.fixture
def start(models: Path) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def start(
        *arguments: str, port: str = "0", delay: float = 0.0, **variables: str
    ) -> subprocess.Popen[str]:
        if "--models" not in arguments:
            arguments = ("--models", str(models), *arguments)
        environment = {
            **os.environ,
            **variables,
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


def admin_address(process: subprocess.Popen[str]) -> str:
    return ready_line(process).strip().rpartition(" ")[2]


def until_logged(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    while words not in process.stderr.readline():
        assert process.poll() is None


def assert_stops(process: subprocess.Popen[str]) -> None:
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert time.monotonic() - started < 5


def test_a_load_does_not_hold_up_the_end(start: Start, models: Path) -> None:
    process = start("--admin-port", "0")
    address = admin_address(process)
    (models / "echo" / "9").mkdir()
    with dragoman.AdminClient(address) as admin, ThreadPoolExecutor(1) as pool:
        rollout = pool.submit(admin.roll_out, "echo", "9")
        until_logged(process, "echo/9")
        assert_stops(process)
        with pytest.raises((dragoman.Unavailable, dragoman.Cancelled)):
            rollout.result(10)


def test_a_load_at_start_up_does_not_hold_up_the_end(start: Start, models: Path) -> None:
    (models / "echo" / "9").mkdir()
    process = start()
    until_logged(process, "echo/9")
    assert_stops(process)


def test_an_unload_does_not_hold_up_the_end(start: Start) -> None:
    process = start("--admin-port", "0", delay=0.02)
    words = ready_line(process).split()
    address, admin_address = words[3].rstrip(","), words[-1]
    with (
        dragoman.Client(address) as client,
        dragoman.AdminClient(admin_address) as admin,
        ThreadPoolExecutor(1) as pool,
    ):
        stream = client.stream("x" * 60, beam_size=1)
        assert next(stream) == "x"
        unload = pool.submit(admin.unload, "echo")
        until_logged(process, "unloaded")
        process.send_signal(signal.SIGTERM)
        assert stream.result().text == "x" * 60
        with pytest.raises((dragoman.Unavailable, dragoman.Cancelled)):
            unload.result(10)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_what_cannot_start_says_so_in_one_line(start: Start, tmp_path: Path) -> None:
    broken = tmp_path / "bad"
    (broken / "broken" / "3").mkdir(parents=True)
    holder = start()
    port = ready_line(holder).split()[3].rstrip(",").rpartition(":")[2]
    for process, words in (
        (start("--models", str(broken)), "broken/3: no good"),
        (start("--admin-port", port), f"cannot listen on 127.0.0.1:{port}"),
        (start(port=port), f"cannot listen on 127.0.0.1:{port}"),
        (start("--max-rows", "0"), "--max-rows must be at least 1"),
        (start("--device", "tpu"), "--device"),
        (start("--tokens", str(tmp_path / "none")), f"{tmp_path}/none"),
        (start("--tls-certificate", "x", "--tls-key", str(tmp_path / "none")), "directory: 'x'"),
        (start("--admin-port", "0", "--admin-host", "0.0.0.0"), "would let everybody decide"),
        (start("--traces", "collector:4317"), "--traces must be http://HOST:PORT"),
        (start("--trace-ratio", "2"), "--trace-ratio must be between 0 and 1"),
        (
            start("--traces", "http://localhost:4317", MISSING="opentelemetry"),
            "pip install 'dragoman[tracing]'",
        ),
        (
            start("--traces", "http://localhost:4317", OTEL_EXPORTER_OTLP_COMPRESSION="7zip"),
            "--traces: a setting of OTEL_EXPORTER_OTLP_*",
        ),
    ):
        output, log = process.communicate(timeout=20)
        assert process.returncode == 2
        assert output == ""
        errors = [line for line in log.splitlines() if " INFO " not in line]
        assert len(errors) == 1, log
        assert errors[0].startswith("dragoman: error: ")
        assert words in errors[0]


def test_without_traces_opentelemetry_is_not_needed(start: Start) -> None:
    process = start(MISSING="opentelemetry")
    with dragoman.Client(ready_line(process).split()[3].rstrip(",")) as client:
        assert client.translate("Hello.").text == "Hello."
    assert_stops(process)


def test_spans_that_wait_are_sent_at_the_end_and_the_log_names_their_trace(
    start: Start, collector: Any
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    process = start("--traces", collector.endpoint, "--log-calls", "--log-format", "json")
    with grpc.insecure_channel(ready_line(process).split()[3].rstrip(",")) as channel:
        stub: Any = TranslationServiceStub(channel)
        metadata = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
        stub.Translate(pb.TranslateRequest(texts=["Hello."]), metadata=metadata)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert len(collector.spans) == 6
    assert {span.trace_id.hex() for span in collector.spans} == {trace}
    records = [json.loads(line) for line in log.splitlines()]
    assert [record["method"] for record in records if record.get("trace_id") == trace] == [
        "/dragoman.v1.TranslationService/Translate"
    ]


@pytest.mark.parametrize("listens", [False, True])
def test_a_collector_that_is_gone_or_silent_costs_nobody_anything(start: Start, listens: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if not listens:
            listener.close()
        process = start("--traces", endpoint, "--log-format", "json")
        with dragoman.Client(ready_line(process).split()[3].rstrip(",")) as client:
            for _ in range(200):
                assert client.translate("Hello.").text == "Hello."
            time.sleep(2)  # the first batches are on their way
            assert client.translate("Hello.").text == "Hello."
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert time.monotonic() - started < 6
    warnings = [record for record in map(json.loads, log.splitlines()) if record["level"] != "INFO"]
    assert {record["logger"] for record in warnings} == {"dragoman_server.service.tracing"}
    assert len(warnings) <= 2
