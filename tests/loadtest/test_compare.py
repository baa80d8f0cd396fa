"""Two runs of one schedule: a difference is told from chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dragoman_loadtest.compare import compare_answered, compare_records
from dragoman_loadtest.samples import RECORD, Code
from dragoman_loadtest.schedule import Fate

SECONDS, PER_SECOND = 40, 25


def run(seed: int, slower: float = 1.0) -> NDArray[Any]:
    """A run whose load, the same in all of them, varies by the second, and its latencies with it."""
    load = np.repeat(np.random.default_rng(0).lognormal(0.0, 0.2, SECONDS), PER_SECOND)
    noise = np.random.default_rng(seed).lognormal(0.0, 0.3, SECONDS * PER_SECOND)
    records = np.zeros(SECONDS * PER_SECOND, RECORD)
    records["scheduled"] = records["sent"] = np.arange(len(records)) / PER_SECOND
    records["done"] = records["scheduled"] + 0.1 * slower * load * noise
    return records


def test_a_run_equals_itself() -> None:
    for found in compare_records(run(1), run(1), 0.05):
        assert found.ratio == found.low == found.high == 1.0
        assert found.a == found.b
        assert not found.regression


def test_a_run_that_is_a_fifth_slower_is_a_regression() -> None:
    found = compare_records(run(1), run(2, slower=1.2), 0.05)
    assert [comparison.quantile for comparison in found] == ["p50", "p90", "p97", "p99"]
    for comparison in found[:3]:
        assert comparison.regression
        assert comparison.low <= 1.2 <= comparison.high
        assert comparison.ratio == pytest.approx(comparison.b / comparison.a)


def test_a_run_that_is_faster_is_none() -> None:
    for found in compare_records(run(1, slower=1.2), run(2), 0.05):
        assert found.ratio < 1.0
        assert not found.regression


@pytest.mark.parametrize("seed", range(2, 6))
def test_noise_alone_is_no_regression(seed: int) -> None:
    for found in compare_records(run(1), run(seed), 0.05):
        assert found.low <= found.ratio <= found.high
        assert not found.regression


def test_what_is_within_the_threshold_is_no_regression() -> None:
    for found in compare_records(run(1), run(1, slower=1.04), 0.05):
        assert found.low > 1.0
        assert not found.regression


def test_the_seed_decides_the_interval() -> None:
    assert compare_records(run(1), run(2), 0.05) == compare_records(run(1), run(2), 0.05)


def test_another_metric_is_compared_by_its_name() -> None:
    streamed = run(1)
    streamed["first"] = streamed["scheduled"] + 0.05
    for found in compare_records(streamed, streamed, 0.05, metric="ttft"):
        assert (found.metric, found.a) == ("ttft", pytest.approx(0.05))


@pytest.mark.parametrize("spoil", [{"code": Code.UNAVAILABLE}, {"fate": Fate.CANCEL}, {"done": np.nan}])
def test_a_run_without_a_timed_request_cannot_be_compared(spoil: dict[str, Any]) -> None:
    spoilt = run(1)
    for name, value in spoil.items():
        spoilt[name] = value
    for pair in ((spoilt, run(2)), (run(2), spoilt), (spoilt, spoilt), (run(1)[:0], run(2))):
        with pytest.raises(ValueError, match="nothing to compare"):
            compare_records(*pair, 0.05)


def test_runs_of_different_length_are_compared() -> None:
    for found in compare_records(run(1), run(1)[: 20 * PER_SECOND], 0.05):
        assert found.low < 1.0 < found.high


def test_refusals_are_a_regression_however_quick_the_rest_is() -> None:
    refusing = run(1, slower=0.5)
    refusing["code"][::10] = Code.RESOURCE_EXHAUSTED
    found = compare_answered(run(1), refusing)
    assert (found.metric, found.a, found.b) == ("answered", 1.0, pytest.approx(0.9))
    assert found.high < 1.0
    assert found.regression
    assert not compare_answered(refusing, run(1)).regression
    assert not compare_answered(refusing, refusing).regression
