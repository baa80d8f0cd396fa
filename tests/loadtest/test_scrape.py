"""What grew between two readings of a Prometheus endpoint."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dragoman_loadtest.scrape import Growth, Scrape


class Endpoint:
    """Metrics of a process, and readings of them two seconds apart."""

    def __init__(self, started: float = 1000.0) -> None:
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        Gauge("process_start_time_seconds", "Start.", **own).set(started)
        self.calls = Counter("calls", "Calls.", ("method", "code"), **own)
        self.seconds = Histogram("seconds", "Times.", ("model",), buckets=(0.1, 0.2, 0.4), **own)

    def read(self, time: float = 0.0) -> Scrape:
        return Scrape(time, tuple(sample for one in self._registry.collect() for sample in one.samples))


def test_what_a_counter_grew_by() -> None:
    endpoint = Endpoint()
    endpoint.calls.labels("Translate", "OK").inc(5)
    before = endpoint.read()
    endpoint.calls.labels("Translate", "OK").inc(6)
    endpoint.calls.labels("Translate", "CANCELLED").inc(2)  # not there before: from 0
    endpoint.calls.labels("GetModel", "OK").inc(1)
    growth = Growth(before, endpoint.read(2.0))
    assert growth.of("calls_total") == 9.0
    assert growth.of("calls_total", code="OK") == 7.0
    assert growth.rate("calls_total", method="Translate", code="OK") == 3.0
    assert growth.by("code", "calls_total") == {"OK": 7.0, "CANCELLED": 2.0}
    assert growth.by("code", "calls_total", method="GetModel") == {"OK": 1.0}
    assert growth.of("unknown_total") == 0.0


def test_quantiles_are_of_what_was_observed_in_between() -> None:
    endpoint = Endpoint()
    for _ in range(100):
        endpoint.seconds.labels("a").observe(0.05)
    before = endpoint.read()
    for seconds in (0.15, 0.15, 0.3, 0.3):
        endpoint.seconds.labels("a").observe(seconds)
    endpoint.seconds.labels("b").observe(9.0)
    growth = Growth(before, endpoint.read(2.0))
    assert growth.mean("seconds", model="a") == pytest.approx(0.225)
    assert growth.quantile(0.25, "seconds", model="a") == pytest.approx(0.15)
    assert growth.quantile(0.5, "seconds", model="a") == pytest.approx(0.2)
    assert growth.quantile(0.75, "seconds", model="a") == pytest.approx(0.3)
    assert growth.quantile(1.0, "seconds", model="a") == pytest.approx(0.4)
    assert growth.quantile(0.5, "seconds", model="b") == 0.4, "beyond the last bound nothing is known"


def test_where_nothing_was_observed_there_is_no_quantile() -> None:
    endpoint = Endpoint()
    endpoint.seconds.labels("a").observe(0.15)
    growth = Growth(endpoint.read(), endpoint.read(2.0))
    for model in ("a", "none"):
        assert growth.quantile(0.5, "seconds", model=model) is None
        assert growth.mean("seconds", model=model) is None


def test_a_server_that_was_started_anew_counts_from_zero() -> None:
    old, new = Endpoint(started=1000.0), Endpoint(started=2000.0)
    old.calls.labels("Translate", "OK").inc(5)
    new.calls.labels("Translate", "OK").inc(8)
    old.seconds.labels("a").observe(0.05)
    new.seconds.labels("a").observe(0.15)
    growth = Growth(old.read(), new.read(2.0))
    assert growth.of("calls_total") == 8.0
    assert growth.by("code", "calls_total") == {"OK": 8.0}
    assert growth.quantile(1.0, "seconds") == pytest.approx(0.2)
