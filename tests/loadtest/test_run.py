"""Whole runs against scripted servers: what is measured is what the script says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dragoman.options import TranslateOptions
from dragoman_loadtest.corpus import Corpus
from dragoman_loadtest.figures import figures
from dragoman_loadtest.measures import seconds_of
from dragoman_loadtest.options import Misbehaviour, Phases, Target, Traffic
from dragoman_loadtest.run import Measurement, Moment, Plan, measure
from dragoman_loadtest.samples import Code
from dragoman_loadtest.schedule import Fate
from dragoman_loadtest.slo import parse_objectives

CORPUS = Corpus("texts", tuple(f"text number {i}" for i in range(50)))
Start = Callable[..., str]


def plan(
    address: str,
    traffic: Traffic,
    seconds: float,
    misbehaviour: Misbehaviour | None = None,
    slo: str = "",
    warm_up: float = 0.0,
    drain: float = 5.0,
) -> Plan:
    return Plan(
        target=Target(endpoint=address),
        traffic=traffic,
        options=TranslateOptions(),
        corpus=CORPUS,
        phases=Phases(duration_seconds=seconds, warm_up_seconds=warm_up, drain_seconds=drain),
        misbehaviour=misbehaviour or Misbehaviour(),
        objectives=parse_objectives(slo),
    )


def codes(measurement: Measurement) -> dict[str, int]:
    found, counts = np.unique(measurement.samples.records["code"], return_counts=True)
    return {Code(code).name: int(count) for code, count in zip(found, counts, strict=True)}


def test_every_scheduled_request_is_sent_once_and_answered(fake_server: Start) -> None:
    found = measure(plan(fake_server(), Traffic(rate=200.0, processes=2), 2.0))
    records = found.samples.records
    assert sorted(records["request"]) == list(range(len(found.schedule)))
    assert set(records["process"]) == {0, 1}
    assert codes(found) == {"OK": len(records)}
    by_request = found.schedule.entries[records["request"]]
    np.testing.assert_array_equal(records["item"], by_request["item"])
    np.testing.assert_allclose(records["scheduled"], by_request["at"], atol=1e-6)
    assert (records["sent"] >= records["scheduled"]).all()
    answers = {CORPUS.texts[item].upper() for item in records["item"]}
    assert set(found.samples.answers) == answers


def test_a_stall_counts_for_everyone_who_had_to_wait_in_the_open_loop_alone(fake_server: Start) -> None:
    """The server stands still for 1 of every 2 seconds; benchmarks/loadtest_truth.py has exact figures."""
    address = fake_server("--delay", 0.01, "--pause", 1, "--pause-every", 2)
    opened = measure(plan(address, Traffic(rate=100.0, arrivals="constant"), 4.0))
    latency = seconds_of(opened.samples.records, "latency")
    # Half of the arrivals wait, evenly between nothing and a second.
    assert np.quantile(latency, 0.25) < 0.2
    assert 0.35 < np.quantile(latency, 0.75) < 0.75
    assert 0.8 < np.quantile(latency, 0.95) < 1.2
    closed = measure(plan(address, Traffic(concurrency=2), 4.0))
    latency = seconds_of(closed.samples.records, "latency")
    assert len(latency) > 50
    assert np.quantile(latency, 0.75) < 0.2  # where the stall has all but vanished


def test_refusals_are_counted_by_code_and_message(fake_server: Start) -> None:
    found = measure(plan(fake_server("--refuse-every", 10), Traffic(rate=100.0, arrivals="constant"), 2.0))
    assert codes(found) == {"OK": 180, "RESOURCE_EXHAUSTED": 20}
    assert found.samples.errors == {"RESOURCE_EXHAUSTED: no room": 20}


def test_what_is_open_at_the_end_counts_with_its_age(fake_server: Start) -> None:
    started = plan(fake_server("--delay", 30), Traffic(rate=20.0, arrivals="constant"), 1.0, drain=1.0)
    found = measure(started)
    assert codes(found) == {"OPEN": 20}
    latency = np.sort(seconds_of(found.samples.records, "latency"))
    assert latency[0] >= 1.0  # sent last, and waited for during the drain
    assert latency[-1] >= 1.9


def test_streams_measure_first_token_and_gaps(fake_server: Start) -> None:
    address = fake_server("--delay", 0.05, "--gap", 0.02)
    found = measure(plan(address, Traffic(rate=20.0, arrivals="constant", stream=True), 1.0))
    records = found.samples.records
    assert codes(found) == {"OK": 20}
    assert np.median(seconds_of(records, "ttft")) == pytest.approx(0.05, abs=0.04)
    assert len(found.samples.gaps) == 2 * 20  # three words each
    assert np.median(found.samples.gaps) == pytest.approx(0.02, abs=0.015)


def test_misbehaviour_happens_as_planned_and_does_not_count_against_the_server(fake_server: Start) -> None:
    misbehaviour = Misbehaviour(
        cancel_share=0.3, cancel_within_seconds=0.05, slow_share=0.2, slow_pause_seconds=0.01
    )
    found = measure(plan(fake_server("--delay", 0.2), Traffic(rate=50.0), 2.0, misbehaviour, "errors<1%"))
    records = found.samples.records
    fates = {fate: records[records["fate"] == fate] for fate in Fate}
    assert set(fates[Fate.CANCEL]["code"]) == {Code.CANCELLED}
    assert set(fates[Fate.PLAIN]["code"]) == set(fates[Fate.READ_SLOWLY]["code"]) == {Code.OK}
    seen = figures(plan("127.0.0.1:1", Traffic(), 1.0, slo="errors<1%"), found)
    assert seen["requests"]["failed"] == 0
    assert seen["objectives"][0]["requests"] == len(fates[Fate.PLAIN])


def test_deadlines_of_a_distribution_are_kept_to(fake_server: Start) -> None:
    misbehaviour = Misbehaviour(deadlines="50ms:1,10s:1")
    found = measure(plan(fake_server("--delay", 0.3), Traffic(rate=100.0), 1.0, misbehaviour))
    impatient = found.schedule.entries["timeout"][found.samples.records["request"]] < 1.0
    assert set(found.samples.records["code"][impatient]) == {Code.DEADLINE_EXCEEDED}
    assert set(found.samples.records["code"][~impatient]) == {Code.OK}


def test_clients_are_killed_in_the_middle_of_their_requests(fake_server: Start) -> None:
    found = measure(
        plan(fake_server("--delay", 0.2), Traffic(rate=20.0), 6.0, Misbehaviour(killed_clients=1))
    )
    assert found.killed_clients >= 1
    assert set(codes(found)) == {"OK"}


def test_a_decided_objective_ends_the_run(fake_server: Start) -> None:
    address = fake_server("--delay", 0.02)
    for slo in ("p97<500ms", "p97<10ms"):
        found = measure(plan(address, Traffic(rate=200.0), 12.0, slo=slo))
        assert found.stopped_early
        assert 6.0 <= found.seconds < 12.0  # not before half of the run


def test_a_server_that_falls_behind_fails_before_it_answers(fake_server: Start) -> None:
    """Judged by its answers alone, which are the early ones, it would pass."""
    slow = plan(fake_server("--serial", 0.1), Traffic(rate=100.0), 12.0, slo="p97<250ms", drain=0.5)
    found = measure(slow)
    assert found.stopped_early
    assert figures(slow, found)["verdict"] == "fail"


def test_the_warm_up_ends_when_it_is_steady_and_is_not_measured(fake_server: Start) -> None:
    found = measure(plan(fake_server("--delay", 0.01), Traffic(rate=50.0), 1.0, warm_up=20.0))
    assert found.was_steady
    assert 2.0 < found.warm_up_seconds < 15.0
    assert len(found.samples) == len(found.schedule)


def test_the_watcher_sees_every_phase(fake_server: Start) -> None:
    seen: list[Moment] = []
    measure(plan(fake_server("--delay", 0.5), Traffic(rate=20.0), 1.0, warm_up=1.0), seen.append)
    phases = [moment.phase for moment in seen]
    assert sorted(set(phases), key=phases.index) == ["warm-up", "measuring", "draining"]
    assert max(moment.in_flight for moment in seen) > 0


def test_no_server_is_an_error_in_words() -> None:
    with pytest.raises(ConnectionError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"):
        measure(plan("127.0.0.1:1", Traffic(), 1.0))


def test_ctrl_c_keeps_what_was_measured(fake_server: Start) -> None:
    timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    found = measure(plan(fake_server(), Traffic(rate=50.0), 60.0))
    timer.join()
    assert found.interrupted
    assert 0 < len(found.samples) < len(found.schedule)
    assert set(codes(found)) <= {"OK", "OPEN"}


def test_no_client_process_outlives_its_coordinator(fake_server: Start, tmp_path: Path) -> None:
    script = tmp_path / "coordinator.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_run import Traffic, measure, plan\n"
        f"if __name__ == '__main__': measure(plan({fake_server()!r}, Traffic(rate=10.0), 60.0))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    time.sleep(4.0)
    process.kill()
    process.wait()
    end = time.monotonic() + 10.0
    while _group_lives(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _group_lives(process.pid)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
