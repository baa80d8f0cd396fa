"""`dragoman top` against the metrics that a server really has."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from dragoman import cli
from dragoman_loadtest.scrape import Growth, scrape
from dragoman_loadtest.top.cli import _watch
from dragoman_loadtest.top.figures import ServerFigures, figures_of
from dragoman_loadtest.top.table import render
from dragoman_server.engine import EngineStats, FinishRecord, Outcome, StepRecord, Timing, Totals
from dragoman_server.metrics import CallRecord, MetricsEndpoint, ServerMetrics
from dragoman_server.models import ModelDescription

DESCRIPTION = ModelDescription(
    name="en-de",
    version="3",
    source_languages=("en",),
    target_languages=("de",),
    architecture="transformer",
    dimensions={},
    precision="int8",
    device="cpu",
    max_source_tokens=64,
    max_output_tokens=64,
    max_queue=9,
    manifest_sha256="0" * 64,
    provenance="",
    licence="",
)
STATS = EngineStats(waiting=7, unanswered=9, slots_in_use=32, slots=128, stalled_workers=1, totals=Totals())
Run = Callable[..., tuple[int, str, str]]


def new_metrics(stats: EngineStats = STATS) -> ServerMetrics:
    metrics = ServerMetrics()
    metrics.watch_server(lambda: 4, lambda: 0)
    metrics.watch(DESCRIPTION, lambda: stats)
    return metrics


def work(metrics: ServerMetrics) -> None:
    """Some calls, sentences and steps."""
    for method, code in (
        ("/dragoman.v1.TranslationService/Translate", "OK"),
        ("/dragoman.v1.TranslationService/TranslateStream", "OK"),
        ("/dragoman.v1.TranslationService/Translate", "RESOURCE_EXHAUSTED"),
        ("/grpc.health.v1.Health/Check", "OK"),
    ):
        metrics.observe_call(CallRecord(method, code, 0.2, "somebody"))
    engine = metrics.engine("en-de")
    engine.on_step(StepRecord(rows=8, padded_rows=1, seconds=0.003))
    engine.on_step(StepRecord(rows=4, padded_rows=0, seconds=0.005))
    engine.on_finished(FinishRecord(Outcome.STOP, 5, 60, Timing(queue=0.07, encode=0.1, decode=0.2)))
    engine.on_refused("queue_full")


@pytest.fixture
def metrics() -> ServerMetrics:
    """Those of a server that has worked before anybody watched."""
    metrics = new_metrics()
    work(metrics)
    return metrics


@pytest.fixture
def address(metrics: ServerMetrics) -> Iterator[str]:
    with MetricsEndpoint(metrics.registry, "127.0.0.1", 0) as endpoint:
        yield f"127.0.0.1:{endpoint.port}"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `dragoman top` in this process; returns exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["top", *arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def seen(metrics: ServerMetrics, address: str) -> ServerFigures:
    """As if two seconds lay between two readings."""
    before = scrape(address)
    work(metrics)
    return figures_of(Growth(before, dataclasses.replace(scrape(address), time=before.time + 2.0)))


def test_the_figures_are_those_of_the_time_in_between(metrics: ServerMetrics, address: str) -> None:
    figures = seen(metrics, address)
    assert figures.seconds == 2.0
    expected = {"OK": 1.0, "RESOURCE_EXHAUSTED": 0.5}
    assert figures.calls_per_second == expected, "health checks are no work"
    assert figures.calls_in_progress == 4
    assert figures.call_seconds_p50 == pytest.approx(0.175)
    assert figures.resident_bytes > 2**20
    assert figures.uptime_seconds > 0.0
    [model] = figures.models
    assert (model.model, model.version, model.precision, model.device) == ("en-de", "3", "int8", "cpu")
    assert (model.source_tokens_per_second, model.output_tokens_per_second) == (2.5, 30.0)
    assert (model.queue_depth, model.slots_in_use, model.slots, model.stalled_workers) == (7, 32, 128, 1)
    assert model.queue_seconds_p50 == pytest.approx(0.075)
    assert model.step_seconds == pytest.approx(0.004)
    assert model.rows_per_step == pytest.approx(6.0)
    assert model.refusals_per_second == {"queue_full": 0.5}


def test_a_server_that_does_nothing_has_figures_too(address: str) -> None:
    figures = figures_of(Growth(scrape(address), scrape(address)))
    assert (figures.calls_per_second, figures.call_seconds_p99) == ({}, None)
    [model] = figures.models
    assert (model.refusals_per_second, model.step_seconds, model.rows_per_step) == ({}, None, None)


def shown(address: str, figures: ServerFigures, width: int = 80) -> str:
    output = StringIO()
    Console(file=output, width=width).print(render(address, figures))
    return output.getvalue()


def test_a_model_has_two_lines_of_80_columns(metrics: ServerMetrics, address: str) -> None:
    _, calls, first, second, refusals = shown(address, seen(metrics, address)).splitlines()
    assert calls == "in progress 4  p50 175.0 ms p99 248.5 ms  calls/s OK 1.0  RESOURCE_EXHAUSTED 0.5"
    assert first.startswith("en-de 3, 1 stalled   tokens/s 30   slots ████             32/128   step 4.0 ms")
    assert second.startswith("  int8, cpu          queue 7       wait p50 75.0 ms p99 99.5 ms    rows 6.0")
    assert refusals == "en-de refuses/s queue_full 0.5"


def test_a_server_without_models_says_so(metrics: ServerMetrics, address: str) -> None:
    metrics.unwatch("en-de")
    assert "no model is served" in shown(address, seen(metrics, address))


def test_one_table_or_one_object(run: Run, address: str) -> None:
    usual = ("--metrics", address, "--interval", "0.1", "--once")
    code, output, errors = run(*usual)
    assert (code, errors) == (0, "")
    assert output.count("en-de 3") == 1
    code, output, _ = run(*usual, "--json")
    assert code == 0
    [record] = map(json.loads, output.splitlines())
    assert record["models"][0]["queue_depth"] == 7


def test_a_restart_is_waited_for() -> None:
    with MetricsEndpoint(new_metrics().registry, "127.0.0.1", 0) as endpoint:
        port = endpoint.port
        address = f"127.0.0.1:{port}"
        watch = _watch(address, scrape(address), 0.01)
        assert isinstance(next(watch), ServerFigures)
    assert isinstance(next(watch), ConnectionError)
    metrics = new_metrics()
    work(metrics)
    with MetricsEndpoint(metrics.registry, "127.0.0.1", port):
        figures = next(watch)
    assert isinstance(figures, ServerFigures)
    assert figures.calls_per_second == {}, "what was done while nobody could watch has no rate"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--metrics", "127.0.0.1:9"], "no server shows its metrics at 127.0.0.1:9: start"),
        (["--metrics", "http://127.0.0.1:9090/metrics"], "--metrics must be HOST:PORT"),
        (["--interval", "0"], "--interval must be at least 0.1 seconds"),
        (["--interval", "nan"], "--interval must be at least 0.1 seconds"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: list[str], words: str) -> None:
    code, output, errors = run(*arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(f"dragoman: error: {words}")


def test_another_exporter_is_no_server(run: Run) -> None:
    with MetricsEndpoint(CollectorRegistry(), "127.0.0.1", 0) as endpoint:
        code, _, errors = run("--metrics", f"127.0.0.1:{endpoint.port}", "--once")
    assert code == 2
    assert errors.endswith("is no dragoman server: name one with --metrics\n")


def test_an_interrupt_ends_it_quietly(address: str) -> None:
    script = "import sys; from dragoman.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", script, "top", "--metrics", address, "--interval", "0.1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["calls_in_progress"] == 4
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
