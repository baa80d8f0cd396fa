from __future__ import annotations

import dataclasses
import json
import re
import socket
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "dragoman.json"
# What Prometheus adds to every sample, and Grafana to the dashboard's own variables.
OF_PROMETHEUS = {"instance", "job"}
OF_GRAFANA = {"__rate_interval"}
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
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"`(dragoman_\w+)", text)) == own


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """The names of all samples of a server that has worked, and the names of their labels."""
    metrics = ServerMetrics()
    metrics.watch_server(lambda: 0, lambda: 0)
    metrics.watch(DESCRIPTION, lambda: EngineStats(0, 0, 0, 9, 0, Totals()))
    metrics.observe_call(CallRecord("Translate", "OK", 0.1, "somebody"))
    metrics.observe_text("toy")("tokenise", 0.001)
    engine = metrics.engine("toy")
    engine.on_encode(EncodeRecord(requests=1, tokens=1, padding=0, seconds=0.1))
    engine.on_step(StepRecord(rows=1, padded_rows=0, seconds=0.1))
    engine.on_finished(FinishRecord(Outcome.STOP, 1, 1, Timing(queue=0.1, encode=0.1, decode=0.1)))
    engine.on_refused("deadline")
    found: defaultdict[str, set[str]] = defaultdict(set)
    for family in metrics.registry.collect():
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    return found


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    """Those of the panels, and of the variables, as if these asked for a sum by their label."""
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard["templating"]["list"]:
        yield re.sub(r"label_values\((.*), (\w+)\)", r"sum by (\2) (\1)", variable.get("definition", ""))


def metric_names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:dragoman|process)_\w+", expression))


def test_the_dashboard_asks_for_metrics_by_labels_that_they_have(
    dashboard: dict[str, Any], labels: dict[str, set[str]]
) -> None:
    for expression in expressions(dashboard):
        assert metric_names(expression) <= set(labels), expression
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", expression))))
        for name, matchers in re.findall(r"\b((?:dragoman|process)_\w+)(?:{([^}]*)})?", expression):
            asked = grouped | set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", matchers))
            assert asked <= labels[name] | OF_PROMETHEUS, f"{name} in {expression}"


def test_the_dashboard_shows_every_metric(dashboard: dict[str, Any], labels: dict[str, set[str]]) -> None:
    def families(names: Iterable[str]) -> set[str]:
        return {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in names}

    shown = set().union(*map(metric_names, expressions(dashboard)))
    assert {name for name in families(labels) if name.startswith("dragoman_")} <= families(shown)


def test_the_dashboard_defines_its_variables(dashboard: dict[str, Any]) -> None:
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = {name for text in expressions(dashboard) for name in re.findall(r"\$(\w+)", text)}
    assert used <= defined | OF_GRAFANA
