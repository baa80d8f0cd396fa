"""Presets: the rules of a published benchmark, and where a run departs from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dragoman_loadtest.corpus import Corpus
from dragoman_loadtest.options import Judgement, Phases, Traffic

__all__ = ["mlperf_departures", "mlperf_gnmt"]

_SLO = "p97<250ms"
_SECONDS = 60.0
_QUERIES = 90_112
_MEAN_WORDS = 19.8  # newstest2014 English, 3,003 sentences
_WORDS_TOLERANCE = 0.25


def mlperf_gnmt(traffic: Traffic, phases: Phases, judgement: Judgement) -> tuple[Traffic, Phases, Judgement]:
    """The server scenario of MLPerf Inference v0.5 for GNMT.

    Raises:
        ValueError: a setting contradicts the rules.
    """
    if traffic.concurrency is not None or traffic.trace is not None:
        raise ValueError("--preset mlperf-gnmt is an open loop with Poisson arrivals")
    if judgement.slo not in ("", _SLO):
        raise ValueError(f"--preset mlperf-gnmt has the objective {_SLO}: leave --slo out")
    return (
        replace(traffic, arrivals="poisson", draw="uniform"),
        replace(phases, duration_seconds=max(phases.duration_seconds, _SECONDS)),
        replace(judgement, slo=_SLO, early_stop=False),
    )


def mlperf_departures(corpus: Corpus, figures: dict[str, Any]) -> list[str]:
    """In what a run is not what the rules ask for."""
    departures = []
    sent = figures["requests"]["sent"]
    if sent < _QUERIES:
        departures.append(f"{sent:,} queries instead of {_QUERIES:,}")
    words = sum(len(text.split()) for text in corpus.texts) / len(corpus.texts)
    if abs(words / _MEAN_WORDS - 1.0) > _WORDS_TOLERANCE:
        departures.append(f"texts of {words:.1f} words on average instead of newstest2014's {_MEAN_WORDS}")
    return departures
