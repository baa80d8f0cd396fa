from __future__ import annotations

import dataclasses
import re
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dragoman_server.engine import (
    EncodeRecord,
    EngineStats,
    FinishRecord,
    Outcome,
    StepRecord,
    Timing,
    Totals,
)
from dragoman_server.metrics import CallRecord, MetricsEndpoint, ServerMetrics
from dragoman_server.models import ModelDescription

DESCRIPTION = ModelDescription(
    name="toy",
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


def scraped(metrics: ServerMetrics) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its labels' values, in the order of their names."""
    with MetricsEndpoint(metrics.registry, "127.0.0.1", 0) as endpoint:
        address = f"http://127.0.0.1:{endpoint.port}/metrics"
        with urllib.request.urlopen(address, timeout=10) as reply:
            text = reply.read().decode()
    return {
        (
            sample.name.removeprefix("dragoman_"),
            *(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_an_engine_is_watched() -> None:
    metrics = ServerMetrics()
    observer = metrics.engine("toy")
    observer.on_encode(EncodeRecord(requests=2, tokens=10, padding=3, seconds=0.02))
    observer.on_step(StepRecord(rows=8, padded_rows=1, seconds=0.003))
    observer.on_step(StepRecord(rows=4, padded_rows=0, seconds=0.003))
    observer.on_finished(FinishRecord(Outcome.STOP, 5, 6, Timing(queue=0.5, encode=0.1, decode=0.2)))
    observer.on_refused("queue_full")
    metrics.observe_text("toy")("tokenise", 0.001)
    observer.on_finished(FinishRecord(Outcome.CANCELLED, 5, 0, None))
    stats = EngineStats(waiting=7, unanswered=9, slots_in_use=3, slots=64, stalled_workers=1, totals=Totals())
    metrics.watch(DESCRIPTION, lambda: stats)
    samples = scraped(metrics)
    expected = {
        ("encoder_tokens_total", "toy"): 10,
        ("encoder_padding_total", "toy"): 3,
        ("encode_seconds_count", "toy"): 1,
        ("step_rows_total", "toy"): 12,
        ("step_padded_rows_total", "toy"): 1,
        ("step_seconds_count", "toy"): 2,
        ("rows_per_step_sum", "toy"): 12,
        ("segments_total", "toy", "stop"): 1,
        ("segments_total", "toy", "cancelled"): 1,
        ("source_tokens_total", "toy"): 10,
        ("output_tokens_total", "toy"): 6,
        ("queue_seconds_sum", "toy"): 0.5,
        ("queue_seconds_count", "toy"): 1,
        ("queue_depth", "toy"): 7,
        ("slots_in_use", "toy"): 3,
        ("slots", "toy"): 64,
        ("stalled_workers", "toy"): 1,
        ("model_info", "cpu", "toy", "int8", "3"): 1,
        ("refusals_total", "queue_full", "toy"): 1,
        ("text_seconds_count", "toy", "tokenise"): 1,
    }
    assert {key: samples[key] for key in expected} == expected
    newer = dataclasses.replace(DESCRIPTION, version="4")
    metrics.watch(newer, lambda: EngineStats(0, 0, 0, slots=9, stalled_workers=0, totals=Totals()))
    samples = scraped(metrics)
    assert samples["slots", "toy"] == 9
    assert samples["model_info", "cpu", "toy", "int8", "4"] == 1
    assert ("model_info", "cpu", "toy", "int8", "3") not in samples
    metrics.unwatch("toy")
    samples = scraped(metrics)
    assert not {("queue_depth", "toy"), ("slots_in_use", "toy"), ("slots", "toy")} & set(samples)
    assert not [key for key in samples if key[0] == "model_info"]
    assert samples["step_rows_total", "toy"] == 12


def test_calls_are_counted_by_method_and_status() -> None:
    metrics = ServerMetrics()
    for code in ("OK", "OK", "INVALID_ARGUMENT"):
        metrics.observe_call(CallRecord("/dragoman.v1.TranslationService/Translate", code, 0.01, "somebody"))
    samples = scraped(metrics)
    assert samples["calls_total", "OK", "/dragoman.v1.TranslationService/Translate"] == 2
    assert samples["calls_total", "INVALID_ARGUMENT", "/dragoman.v1.TranslationService/Translate"] == 1
    assert samples["call_seconds_count", "/dragoman.v1.TranslationService/Translate"] == 3


def test_two_servers_keep_their_metrics_apart() -> None:
    first, second = ServerMetrics(), ServerMetrics()
    first.observe_call(CallRecord("Translate", "OK", 0.01, "somebody"))
    assert ("calls_total", "OK", "Translate") not in scraped(second)


def test_a_port_that_is_taken_is_an_error_and_a_closed_one_is_free() -> None:
    metrics = ServerMetrics()
    with MetricsEndpoint(metrics.registry, "127.0.0.1", 0) as endpoint:
        port = endpoint.port
        with pytest.raises(OSError, match="in use"):
            MetricsEndpoint(metrics.registry, "127.0.0.1", port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_the_documentation_has_every_metric_and_no_other() -> None:
    metrics = ServerMetrics()
    metrics.watch_server(lambda: 0, lambda: 0)
    families = [(one.name, one.type) for one in metrics.registry.collect()]
    names = {f"{name}_total" if kind == "counter" else name for name, kind in families}
    own = {name for name in names if name.startswith("dragoman_")}
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"`(dragoman_\w+)", text)) == own
