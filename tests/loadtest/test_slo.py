"""Objectives, and the statistics of whether a run shows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dragoman_loadtest.measures import Metric
from dragoman_loadtest.samples import RECORD, Code
from dragoman_loadtest.schedule import Fate
from dragoman_loadtest.slo import Check, Objective, Verdict, check, overall, parse_objectives

P97 = Objective("p97<1s", 0.97, "latency", 1.0)
MANY = 20_000
# Late answers first, timely ones behind them: a slice has as many of each as is wanted.
LATE_AND_TIMELY = np.zeros(2 * MANY, RECORD)
LATE_AND_TIMELY["done"] = np.where(np.arange(2 * MANY) < MANY, 2.0, 0.5)


def verdict(
    over: int, requests: int, share: float = 0.97, *, final: bool = True, confidence: float = 0.99
) -> Verdict:
    records = LATE_AND_TIMELY[MANY - over : MANY - over + requests]
    found = check(Objective("", share, "latency", 1.0), records, confidence, final=final)
    assert (found.over, found.requests) == (over, requests)
    return found.verdict


def outcomes(*codes: Code, fate: Fate = Fate.PLAIN) -> NDArray[Any]:
    """Requests that ended so, each after half a second."""
    records = np.zeros(len(codes), RECORD)
    records["code"], records["fate"], records["done"] = codes, fate, 0.5
    return records


@pytest.mark.parametrize(
    ("text", "metric", "share", "bound"),
    [
        ("p97<250ms", "latency", 0.97, 0.25),
        ("p99.9 <= 2s", "latency", 0.999, 2.0),
        ("ttft.p99<150ms", "ttft", 0.99, 0.15),
        ("service.p50<1", "service", 0.5, 1.0),
        ("tpot.p90<20ms", "tpot", 0.9, 0.02),
        ("errors<1%", "errors", 0.99, math.inf),
        ("errors<=0.001", "errors", 0.999, math.inf),
    ],
)
def test_an_objective_reads_as_it_is_written(text: str, metric: Metric, share: float, bound: float) -> None:
    (objective,) = parse_objectives(text)
    assert (objective.text, objective.metric) == (text, metric)
    assert objective.share == pytest.approx(share)
    assert objective.bound == pytest.approx(bound)


def test_a_list_gives_its_objectives_in_order() -> None:
    found = parse_objectives(" p97<250ms, errors<1% ,")
    assert [objective.text for objective in found] == ["p97<250ms", "errors<1%"]
    assert parse_objectives("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "fast",
        "p97",
        "p97>1s",
        "p97<",
        "p97<soon",
        "p0<1s",
        "p100<1s",
        "speed.p97<1s",
        "errors.p97<1s",
        "errors<0%",
        "errors<100%",
        "errors<few",
    ],
)
def test_what_is_no_objective_is_shown_with_the_flag(text: str) -> None:
    with pytest.raises(ValueError, match="--slo") as caught:
        parse_objectives(f"p97<1s,{text}")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("share", "sizes"),
    [
        (0.90, (44, 64, 81, 127, 197, 325)),
        (0.97, (152, 219, 277, 433, 667, 1097)),
        (0.99, (459, 662, 838, 1307, 2010, 3304)),
    ],
)
def test_a_run_is_as_long_as_in_the_table_of_mlperf(share: float, sizes: tuple[int, ...]) -> None:
    """The fewest requests that show a quantile at 99 % confidence: MLPerf Inference's early stopping."""
    for over, requests in zip((0, 1, 2, 5, 10, 20), sizes, strict=True):
        assert verdict(over, requests, share) is Verdict.PASS
        assert verdict(over, requests - 1, share) is Verdict.UNDECIDED


@pytest.mark.parametrize("share", [0.9, 0.97])
@pytest.mark.parametrize("requests", [5, 60, 300])
def test_a_run_fails_at_last_where_chance_would_hardly_make_it_so_bad(share: float, requests: int) -> None:
    def at_least(over: int) -> float:
        return math.fsum(
            math.comb(requests, k) * (1.0 - share) ** k * share ** (requests - k)
            for k in range(over, requests + 1)
        )

    fewest = next(over for over in range(requests + 1) if at_least(over) <= 0.01)
    assert verdict(fewest, requests, share) is Verdict.FAIL
    assert verdict(fewest - 1, requests, share) is not Verdict.FAIL


@settings(deadline=None)
@given(st.integers(1, 600).flatmap(lambda n: st.tuples(st.integers(0, min(n, 60)), st.just(n))))
def test_a_look_on_the_way_weighs_the_shares_on_one_side_against_the_bound(count: tuple[int, int]) -> None:
    over, requests = count

    def ratio(first: float, last: float) -> float:
        shares = np.linspace(first, last, 20_001)[:-1] + (last - first) / 40_000  # middles of small steps
        gain = over * np.log(shares / 0.03) + (requests - over) * np.log((1.0 - shares) / 0.97)
        return float(np.exp(gain).mean())

    found, passing, failing = verdict(over, requests, final=False), ratio(0.0, 0.03), ratio(0.03, 1.0)
    # The verdict falls at 100; the sums are not that exact.
    assert found is Verdict.PASS or passing < 100.1
    assert found is Verdict.FAIL or failing < 100.1
    assert found is not Verdict.PASS or passing > 99.9
    assert found is not Verdict.FAIL or failing > 99.9


def test_more_confidence_needs_more_requests() -> None:
    assert verdict(0, 152, confidence=0.999) is Verdict.UNDECIDED
    assert verdict(0, 227, confidence=0.999) is Verdict.PASS
    assert verdict(0, 99, confidence=0.95) is Verdict.PASS


counts = st.integers(0, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
judges = st.tuples(st.sampled_from([0.5, 0.9, 0.97, 0.999]), st.booleans(), st.sampled_from([0.9, 0.99]))


@settings(deadline=None)
@given(counts, judges)
def test_pass_and_fail_lie_on_either_side_of_the_observed_quantile(
    count: tuple[int, int], judge: tuple[float, bool, float]
) -> None:
    (over, requests), (share, final, confidence) = count, judge
    found = verdict(over, requests, share, final=final, confidence=confidence)
    assert found is not Verdict.PASS or over < (1.0 - share) * requests
    assert found is not Verdict.FAIL or over > (1.0 - share) * requests


@settings(deadline=None)
@given(counts.filter(lambda count: count[0] > 0), judges)
def test_a_better_run_is_never_judged_worse(count: tuple[int, int], judge: tuple[float, bool, float]) -> None:
    (over, requests), (share, final, confidence) = count, judge
    rank = [Verdict.FAIL, Verdict.UNDECIDED, Verdict.PASS]
    better, worse = (
        rank.index(verdict(k, requests, share, final=final, confidence=confidence)) for k in (over - 1, over)
    )
    assert better >= worse


def test_nothing_is_shown_by_no_requests() -> None:
    for final in (True, False):
        assert verdict(0, 0, final=final) is Verdict.UNDECIDED


def limits(requests: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """By the number of requests: the most over the bound that still pass, and the fewest that fail."""

    @cache
    def of(over: int, n: int) -> Verdict:
        return verdict(over, n, final=False)

    passes, fails = [-1], [1]
    for n in range(1, requests + 1):
        most, fewest = passes[-1], fails[-1]
        while of(most + 1, n) is Verdict.PASS:
            most += 1
        while fewest <= n and of(fewest, n) is not Verdict.FAIL:
            fewest += 1
        passes.append(most)
        fails.append(fewest)
    return np.array(passes[1:]), np.array(fails[1:])


@pytest.fixture(scope="module")
def watched() -> Callable[[float], tuple[float, float]]:
    """Shares of 2000 simulated runs, looked at after each of 3000 requests, that ever pass and ever fail."""
    passes, fails = limits(3000)
    generator = np.random.default_rng(7)

    def shares(over_share: float) -> tuple[float, float]:
        late = generator.random((2000, 3000)) < over_share
        over = np.cumsum(late, axis=1)
        return float((over <= passes).any(axis=1).mean()), float((over >= fails).any(axis=1).mean())

    return shares


def test_however_often_one_looks_a_verdict_at_the_bound_is_rarely_wrong(
    watched: Callable[[float], tuple[float, float]],
) -> None:
    passing, failing = watched(0.03)
    assert passing <= 0.01
    assert failing <= 0.01


def test_away_from_the_bound_a_run_is_decided_at_last(
    watched: Callable[[float], tuple[float, float]],
) -> None:
    passing, failing = watched(0.01)
    assert passing > 0.99
    assert failing <= 0.01
    passing, failing = watched(0.07)
    assert passing <= 0.01
    assert failing > 0.99


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_a_request_without_an_answer_is_over(code: Code) -> None:
    records = outcomes(Code.OK, code, code)
    assert check(P97, records).over == 2
    assert check(Objective("errors<1%", 0.99, "errors"), records).over == 2


def test_an_answer_is_over_only_beyond_the_bound() -> None:
    records = outcomes(*[Code.OK] * 4)
    records["done"] = [0.2, 1.0, 1.001, 50.0]
    assert check(P97, records).over == 2
    assert check(Objective("errors<1%", 0.99, "errors"), records).over == 0


def test_a_metric_that_a_request_lacks_is_over() -> None:
    records = outcomes(Code.OK)
    records["first"] = math.nan
    assert check(Objective("ttft.p97<1s", 0.97, "ttft", 1.0), records).over == 1


@pytest.mark.parametrize("fate", [Fate.CANCEL, Fate.READ_SLOWLY])
def test_requests_that_the_client_spoilt_do_not_count(fate: Fate) -> None:
    records = np.concatenate([outcomes(Code.OK), outcomes(Code.CANCELLED, Code.OK, fate=fate)])
    found = check(P97, records)
    assert (found.requests, found.over) == (1, 0)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.97, 0.99, 0.999])
@pytest.mark.parametrize("times", [1, 2, 3, 7])
def test_the_observed_quantile_may_lie_on_the_bound(share: float, times: int) -> None:
    requests = 1000 * times
    allowed = round((1.0 - share) * requests)
    objective = Objective("", share, "latency", 1.0)
    assert Check(objective, requests, allowed, Verdict.UNDECIDED).observed is Verdict.PASS
    assert Check(objective, requests, allowed + 1, Verdict.UNDECIDED).observed is Verdict.FAIL
    assert Check(objective, 10, 1, Verdict.UNDECIDED).observed is (
        Verdict.PASS if share <= 0.9 else Verdict.FAIL
    )


def test_one_failure_fails_all_and_only_passes_pass() -> None:
    passed, failed, open_ = (Check(P97, 1, 0, verdict) for verdict in Verdict)
    assert overall([passed, passed]) is Verdict.PASS
    assert overall([passed, open_]) is Verdict.UNDECIDED
    assert overall([passed, open_, failed]) is Verdict.FAIL
