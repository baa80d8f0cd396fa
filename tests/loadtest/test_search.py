"""The search for the highest rate, against servers of known capacity."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_loadtest.options import Traffic
from dragoman_loadtest.search import Trial, find_peak, knee, sweep_rates


def server(capacity: float) -> Callable[[float, str], Trial]:
    return lambda rate, stage: Trial(stage, rate, rate <= capacity, {})


@given(st.floats(0.06, 40_000.0), st.floats(0.05, 2000.0), st.integers(1, 5))
def test_the_peak_is_within_a_step_below_the_capacity(
    capacity: float, start: float, confirmations: int
) -> None:
    found = find_peak(server(capacity), start, confirmations=confirmations)
    assert found.rate is not None
    assert found.rate <= capacity <= 1.05 * found.rate
    assert found.confirmed == confirmations
    confirming = [trial.rate for trial in found.trials if trial.stage == "confirm" and trial.met]
    assert confirming[-confirmations:] == [found.rate] * confirmations


@given(st.floats(0.001, 1.0))
def test_a_finer_precision_finds_a_closer_peak(precision: float) -> None:
    rate = find_peak(server(100.0), 7.0, precision=precision).rate
    assert rate is not None
    assert rate <= 100.0 <= rate * (1.0 + precision) * (1.0 + 1e-9)


def test_the_search_halves_where_it_started_too_high() -> None:
    found = find_peak(server(100.0), 1000.0)
    doubling = [trial.rate for trial in found.trials if trial.stage == "double"]
    assert doubling == [1000.0, 500.0, 250.0, 125.0, 62.5]


def test_the_search_doubles_where_it_started_too_low() -> None:
    found = find_peak(server(100.0), 10.0)
    doubling = [trial.rate for trial in found.trials if trial.stage == "double"]
    assert doubling == [10.0, 20.0, 40.0, 80.0, 160.0]


def test_every_trial_is_tried_once_and_kept() -> None:
    tried: list[tuple[float, str]] = []

    def try_rate(rate: float, stage: str) -> Trial:
        tried.append((rate, stage))
        return server(30.0)(rate, stage)

    found = find_peak(try_rate, 10.0)
    assert [(trial.rate, trial.stage) for trial in found.trials] == tried


def test_where_nothing_is_met_there_is_no_peak() -> None:
    found = find_peak(server(0.0), 10.0)
    assert (found.rate, found.confirmed) == (None, 0)
    assert not any(trial.met for trial in found.trials)
    assert len(found.trials) < 12


def test_a_server_that_takes_everything_ends_the_search_within_what_may_be_sent() -> None:
    found = find_peak(server(float("inf")), 30_000.0)
    assert found.rate is not None
    for trial in found.trials:
        Traffic(rate=trial.rate)  # raises where it may not


@given(st.data(), st.integers(1, 5))
def test_confirmations_begin_anew_below_where_one_is_not_met(data: st.DataObject, confirmations: int) -> None:
    failing = data.draw(st.integers(0, confirmations - 1))
    seen: list[float] = []

    def try_rate(rate: float, stage: str) -> Trial:
        met = rate <= 100.0
        if stage == "confirm":
            seen.append(rate)
            met = len(seen) - 1 != failing
        return Trial(stage, rate, met, {})

    found = find_peak(try_rate, 50.0, confirmations=confirmations)
    assert found.rate is not None
    assert seen[: failing + 1] == [pytest.approx(found.rate * 1.05)] * (failing + 1)
    assert seen[failing + 1 :] == [found.rate] * confirmations


def test_the_search_climbs_from_where_bisection_was_misled_by_one_failure() -> None:
    def try_rate(rate: float, stage: str) -> Trial:
        return Trial(stage, rate, rate <= (60.0 if stage == "bisect" else 100.0), {})

    found = find_peak(try_rate, 40.0)
    assert found.rate is not None
    assert found.rate <= 100.0 <= 1.05 * found.rate
    assert found.confirmed == 5


def test_a_rate_that_is_never_confirmed_is_no_peak() -> None:
    found = find_peak(lambda rate, stage: Trial(stage, rate, stage != "confirm" and rate < 100.0, {}), 50.0)
    assert found.rate is None
    rates = [trial.rate for trial in found.trials if trial.stage == "confirm"]
    assert rates == sorted(set(rates), reverse=True)


def test_a_sweep_goes_evenly_from_far_below_the_peak_to_beyond_it() -> None:
    rates = sweep_rates(200.0)
    assert (rates[0], rates[-1]) == (pytest.approx(20.0), pytest.approx(300.0))
    steps = [b - a for a, b in itertools.pairwise(rates)]
    assert steps == [pytest.approx(steps[0])] * 11


def test_the_knee_is_where_power_is_greatest() -> None:
    assert knee([(10.0, 0.1), (20.0, 0.11), (30.0, 0.2), (31.0, 2.0)]) == 20.0


@given(st.floats(1.0, 1000.0))
def test_the_knee_of_an_mm1_queue_is_at_half_its_capacity(capacity: float) -> None:
    """Kleinrock 1979: throughput x has the latency 1 / (capacity - x)."""
    curve = [(share * capacity, 1.0 / (capacity - share * capacity)) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert knee(curve) == pytest.approx(capacity / 2.0)


def test_without_a_measured_point_there_is_no_knee() -> None:
    assert knee([]) is None
    assert knee([(0.0, 0.0), (1.0, float("nan"))]) is None
