"""The figures of a measurement made by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dragoman.options import TranslateOptions
from dragoman_loadtest.corpus import Corpus
from dragoman_loadtest.figures import bucket_of, figures, quantiles, self_check, source_tokens, timeline
from dragoman_loadtest.options import Target, Traffic
from dragoman_loadtest.run import Measurement, Plan
from dragoman_loadtest.samples import RECORD, Code, Samples
from dragoman_loadtest.schedule import ENTRY, Fate, Schedule
from dragoman_loadtest.slo import parse_objectives

NAN = math.nan


def requests(*latencies: float, **columns: Any) -> NDArray[Any]:
    """Answered requests, one a second from 0 s on, each of its text; columns replace what they name."""
    records = np.zeros(len(latencies), RECORD)
    records["request"] = records["item"] = np.arange(len(latencies))
    records["scheduled"] = records["sent"] = np.arange(len(latencies))
    records["first"] = NAN
    records["done"] = records["scheduled"] + np.array(latencies)
    records["source_tokens"], records["output_tokens"], records["segments"] = 10, 20, 1
    for name, value in columns.items():
        records[name] = value
    return records


def measurement(records: NDArray[Any], **fields: Any) -> Measurement:
    """Ten seconds in which nothing went wrong."""
    samples = Samples(records, [None] * len(records), errors=fields.pop("errors", {}))
    usual: dict[str, Any] = {
        "schedule": Schedule(np.zeros(0, ENTRY)),
        "samples": samples,
        "seconds": 10.0,
        "drain_seconds": 0.5,
        "warm_up_seconds": 3.0,
        "was_steady": True,
        "stopped_early": False,
        "interrupted": False,
        "processes": 1,
        "client_cpu_share": 0.1,
        "killed_clients": 0,
        "metrics_before": {},
        "metrics_after": {},
        "timeline": [],
        "metrics_error": "",
    }
    return Measurement(**(usual | fields))


def figured(records: NDArray[Any], slo: str = "", **fields: Any) -> dict[str, Any]:
    corpus = Corpus("texts", tuple(f"text {i}" for i in range(20)))
    plan = Plan(
        target=Target(),
        traffic=Traffic(),
        options=TranslateOptions(),
        corpus=corpus,
        objectives=parse_objectives(slo),
    )
    return figures(plan, measurement(records, **fields))


def test_rates_are_per_second_of_the_measurement() -> None:
    found = figured(requests(*[0.1] * 10, segments=3))["rates"]
    expected = {
        "offered": 1,
        "answered": 1,
        "goodput": 1,
        "sentences": 3,
        "source_tokens": 10,
        "output_tokens": 20,
    }
    assert found == pytest.approx(expected)


def test_what_is_answered_during_the_drain_is_no_throughput() -> None:
    found = figured(requests(*[0.1] * 8, 5.0, 5.0))["rates"]
    assert (found["offered"], found["answered"]) == (1.0, pytest.approx(0.8))


def test_goodput_counts_answers_that_meet_every_objective() -> None:
    records = requests(*[0.1] * 7, 2.0, 2.5, 0.1, code=[0] * 6 + [Code.UNAVAILABLE] + [0] * 3)
    records["fate"][0] = Fate.READ_SLOWLY
    found = figured(records, "p97<1s,errors<1%")["rates"]
    assert found["answered"] == pytest.approx(0.8)  # the ninth is still on its way when the time is over
    assert found["goodput"] == pytest.approx(0.6)


def test_without_a_second_there_are_no_rates() -> None:
    assert figured(requests(), seconds=0.0)["rates"] == {}


def test_every_end_is_counted_by_its_name() -> None:
    codes = [0, 0, Code.UNAVAILABLE, Code.UNAVAILABLE, Code.OPEN, Code.CANCELLED, Code.DROPPED]
    records = requests(*[0.1] * 7, code=codes)
    records["fate"][1], records["fate"][5], records["truncated"][0] = Fate.READ_SLOWLY, Fate.CANCEL, True
    found = figured(records, errors={"UNAVAILABLE: refused": 2})
    assert found["errors"]["by_code"] == {"CANCELLED": 1, "UNAVAILABLE": 2, "OPEN": 1, "DROPPED": 1}
    assert found["errors"]["messages"] == {"UNAVAILABLE: refused": 2}
    counts = found["requests"]
    assert (counts["sent"], counts["answered"], counts["open_at_the_end"], counts["truncated"]) == (
        6,
        2,
        1,
        1,
    )
    assert (counts["cancelled_on_purpose"], counts["read_slowly"]) == (1, 1)


def test_a_request_that_was_never_sent_has_not_failed() -> None:
    records = requests(0.1, 0.1, NAN, code=[0, Code.UNAVAILABLE, Code.DROPPED])
    counts = figured(records)["requests"]
    assert (counts["sent"], counts["answered"], counts["failed"]) == (2, 1, 1)


def test_only_the_most_frequent_messages_are_shown() -> None:
    errors = {f"UNKNOWN: {i}": i for i in range(1, 21)}
    shown = figured(requests(0.1), errors=errors)["errors"]["messages"]
    assert shown == {f"UNKNOWN: {i}": i for i in range(20, 10, -1)}


def test_percentiles_are_of_what_is_timed() -> None:
    records = requests(0.1, 0.2, 0.3, 50.0, 99.0, code=[0, 0, 0, Code.OPEN, Code.INTERNAL])
    found = quantiles(records, "latency")
    assert (found["count"], found["max"]) == (3 + 1, 50.0)
    assert found["p50"] == pytest.approx(0.25)
    assert found["mean"] == pytest.approx(50.6 / 4)
    assert quantiles(records, "ttft") == quantiles(records[:0], "latency") == {}


def test_a_curve_rises_from_the_fastest_towards_the_slowest() -> None:
    curve = figured(requests(*np.linspace(0.1, 1.0, 10)))["curves"]["latency"]
    shares, seconds = zip(*curve, strict=True)
    assert curve[0] == (0.0, pytest.approx(0.1))
    assert shares[-1] == pytest.approx(0.9)
    assert list(shares) == sorted(shares)
    assert list(seconds) == sorted(seconds)
    assert figured(requests())["curves"]["latency"] == []


def test_what_the_server_did_not_spend_was_spent_elsewhere() -> None:
    times = {"queue": 0.1, "encode": 0.2, "decode": 0.3, "server": 0.7}
    found = figured(requests(1.0, 1.0, **times))["server_times"]
    means = {name: part["mean"] for name, part in found.items()}
    assert means == pytest.approx({**times, "elsewhere": 0.3})


def test_tokens_fall_into_the_bucket_that_holds_them() -> None:
    tokens = np.array([0, 1, 8, 9, 16, 17, 32, 33, 64, 65, 9999])
    assert list(bucket_of(tokens)) == [-1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_refused_request_falls_into_the_bucket_of_its_text() -> None:
    records = requests(0.1, 0.2, 0.3, 0.4, item=[0, 0, 1, 2], source_tokens=[5, 0, 100, 0])
    records["code"][[1, 3]] = Code.UNAVAILABLE
    assert list(source_tokens(records, 4)) == [5, 100, 0, 0]
    short, long = figured(records)["by_length"]
    assert (short["from"], short["to"], short["requests"], short["latency"]["count"]) == (1, 8, 2, 1)
    assert (long["from"], long["to"], long["requests"], long["latency"]["p50"]) == (
        65,
        None,
        1,
        pytest.approx(0.3),
    )
    assert short["ttft"] == short["tpot"] == {}


def test_the_timeline_goes_by_the_scheduled_second() -> None:
    records = requests(0.1, 5.0, 0.3, 0.4, scheduled=[0.0, 0.9, 2.0, 2.5], code=[0, 0, Code.UNAVAILABLE, 0])
    records["done"] = records["scheduled"] + np.array([0.1, 5.0, 0.3, 0.4])
    gauges = {"dragoman_slots_in_use": 7.0, "dragoman_queue_depth": 2.0}
    points = timeline(
        measurement(records, seconds=2.6, timeline=[(-0.5, {"dragoman_slots_in_use": 1.0}), (2.1, gauges)])
    )
    assert [point["second"] for point in points] == [0.0, 1.0, 2.0]
    assert [point["requests"] for point in points] == [2.0, 0.0, 2.0]
    assert [point["errors"] for point in points] == [0.0, 0.0, 1.0]
    assert points[0]["p50"] == pytest.approx(2.55)
    assert "p50" not in points[1]
    assert points[2]["p99"] == pytest.approx(0.4)
    assert (points[2]["slots_in_use"], points[2]["queue_depth"]) == (7.0, 2.0)
    assert "slots_in_use" not in points[0]


def test_the_slowest_requests_have_names() -> None:
    records = requests(0.1, 9.0, 0.3, 0.4, 0.5, 0.6, 0.7, code=[0] * 6 + [Code.INTERNAL])
    slowest = figured(records)["slowest"]
    assert [entry["request"] for entry in slowest] == [1, 5, 4, 3, 2]
    assert (slowest[0]["line"], slowest[0]["text"], slowest[0]["code"]) == (2, "text 1", "OK")
    assert slowest[0]["latency"] == pytest.approx(9.0)


def test_objectives_are_shown_with_what_was_found() -> None:
    found = figured(requests(*[0.1] * 19, 9.0), "p90<1s,errors<50%")
    (late, errors), verdict = found["objectives"], found["verdict"]
    assert (late["objective"], late["verdict"], late["requests"], late["over"]) == (
        "p90<1s",
        "undecided",
        20,
        1,
    )
    assert (late["over_share"], late["allowed_share"]) == (0.05, pytest.approx(0.1))
    assert (errors["verdict"], verdict) == ("pass", "undecided")


def test_without_objectives_there_is_no_verdict() -> None:
    assert figured(requests(0.1))["verdict"] is None
    assert figured(requests(), "p90<1s")["objectives"][0]["over_share"] is None


def test_figures_are_json_even_where_times_are_missing() -> None:
    """An open or dropped request has no server times; NaN is no JSON."""
    missing = {name: [0.1, NAN, NAN, NAN] for name in ("queue", "encode", "decode", "server")}
    records = requests(0.1, 99.0, NAN, 0.1, code=[0, Code.OPEN, Code.DROPPED, Code.INTERNAL], **missing)
    records["sent"][2] = NAN
    json.dumps(figured(records, "p97<1s"), allow_nan=False)
    json.dumps(figured(requests(), "p97<1s"), allow_nan=False)


def test_a_client_that_keeps_up_is_valid() -> None:
    found = self_check(measurement(requests(*[0.1] * 10)))
    assert (found["valid"], found["reasons"]) == (True, [])


def test_requests_that_left_late_make_a_run_invalid() -> None:
    late = requests(*[0.1] * 10)
    late["sent"] += 0.003
    found = self_check(measurement(late))
    assert not found["valid"]
    assert "3.0 ms late" in found["reasons"][0]
    assert found["send_lag"]["p99"] == pytest.approx(0.003)


def test_a_lag_that_is_small_beside_the_latency_is_allowed() -> None:
    late = requests(*[1.0] * 10)
    late["sent"] += 0.003
    assert self_check(measurement(late))["valid"]


def test_a_lag_that_is_small_beside_the_tightest_bound_is_allowed() -> None:
    late = requests(*[0.1] * 10)
    late["sent"] += 0.003
    assert self_check(measurement(late), parse_objectives("p97<200ms,p99<1s,errors<1%"))["valid"]
    assert not self_check(measurement(late), parse_objectives("p97<100ms,p99<1s"))["valid"]


@pytest.mark.parametrize(
    ("fields", "records", "reason"),
    [
        ({"client_cpu_share": 0.95}, requests(0.1), "95% of a core"),
        ({}, requests(0.1, NAN, code=[0, Code.DROPPED], sent=[0.0, NAN]), "1 requests were not sent"),
        ({}, requests(), "no request"),
    ],
)
def test_a_client_that_is_the_bottleneck_makes_a_run_invalid(
    fields: dict[str, Any], records: NDArray[Any], reason: str
) -> None:
    found = self_check(measurement(records, **fields))
    assert not found["valid"]
    assert [reason in text for text in found["reasons"]] == [True]
