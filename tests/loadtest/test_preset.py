"""The rules of MLPerf Inference v0.5 for GNMT, and departures from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dragoman_loadtest.corpus import Corpus
from dragoman_loadtest.options import Judgement, Phases, Traffic
from dragoman_loadtest.preset import mlperf_departures, mlperf_gnmt
from dragoman_loadtest.slo import parse_objectives

NEWSTEST = Corpus("newstest2014.en", (" ".join(["word"] * 20),))


def figures(sent: int) -> dict[str, Any]:
    return {"requests": {"sent": sent}}


def test_the_preset_sets_what_the_rules_say() -> None:
    traffic, phases, judgement = mlperf_gnmt(Traffic(arrivals="ramp"), Phases(), Judgement())
    assert (traffic.arrivals, traffic.draw) == ("poisson", "uniform")
    assert phases.duration_seconds == 60.0
    (objective,) = parse_objectives(judgement.slo)
    assert (objective.metric, objective.share, objective.bound) == ("latency", 0.97, 0.25)
    assert not judgement.early_stop


def test_the_preset_leaves_the_rest_as_it_was() -> None:
    traffic, phases, judgement = mlperf_gnmt(
        Traffic(rate=7.0, seed=5), Phases(duration_seconds=90.0), Judgement(slo="p97<250ms", confidence=0.95)
    )
    assert (traffic.rate, traffic.seed) == (7.0, 5)
    assert (phases.duration_seconds, judgement.confidence) == (90.0, 0.95)


@pytest.mark.parametrize(
    ("traffic", "judgement", "message"),
    [
        (Traffic(concurrency=1), Judgement(), "open loop"),
        (Traffic(trace=Path("trace.csv")), Judgement(), "Poisson"),
        (Traffic(), Judgement(slo="p99<250ms"), "--slo"),
    ],
)
def test_what_contradicts_the_rules_is_refused(traffic: Traffic, judgement: Judgement, message: str) -> None:
    with pytest.raises(ValueError, match=f"--preset mlperf-gnmt.*{message}"):
        mlperf_gnmt(traffic, Phases(), judgement)


def test_a_run_by_the_rules_has_no_departures() -> None:
    assert mlperf_departures(NEWSTEST, figures(90_112)) == []


def test_departures_are_named() -> None:
    few, short = mlperf_departures(Corpus("short", ("two words", "only")), figures(90_111))
    assert few == "90,111 queries instead of 90,112"
    assert short.startswith("texts of 1.5 words")
