"""Objectives such as `p97<250ms`, and whether a run shows that they are met.

An objective says that a share of requests is good; of n requests, k were not. Whether that shows it is a
question for the binomial distribution, as in MLPerf's early stopping, and the answer may be that it does not
show it yet.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln
from scipy.stats import binom

from dragoman_loadtest.measures import Metric, answered, counted, seconds_of
from dragoman_loadtest.units import parse_seconds, parse_share

__all__ = ["Check", "Objective", "Verdict", "check", "overall", "parse_objectives"]

_QUANTILE = re.compile(r"(?:(\w+)\.)?p(\d{1,2}(?:\.\d+)?)\s*<=?\s*(\S+)")
_ERRORS = re.compile(r"errors\s*<=?\s*(\S+)")


class Verdict(Enum):
    """What a run shows of an objective."""

    PASS = "pass"  # noqa: S105  # no password
    FAIL = "fail"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Objective:
    """At least `share` of the requests are answered, and `metric` is at most `bound` for them."""

    text: str
    share: float
    metric: Metric | Literal["errors"]
    bound: float = math.inf
    """Seconds."""

    def good(self, records: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of these requests meet the bound; one without an answer does not."""
        ok = answered(records)
        if self.metric == "errors":
            return ok
        with np.errstate(invalid="ignore"):
            return ok & (seconds_of(records, self.metric) <= self.bound)


@dataclass(frozen=True, slots=True)
class Check:
    """An objective and what a run shows of it."""

    objective: Objective
    requests: int
    over: int
    """Requests that did not meet the bound."""
    verdict: Verdict

    @property
    def observed(self) -> Verdict:
        """The verdict of the bare quantile, whatever chance may have done to it."""
        allowed = (1.0 - self.objective.share) * self.requests
        return Verdict.PASS if self.requests and self.over <= allowed + 1e-6 else Verdict.FAIL


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Objectives of a comma-separated list: `p97<250ms,ttft.p99<150ms,errors<1%`.

    Metrics are latency (the default), service, ttft and tpot.

    Raises:
        ValueError: one does not read so; the message shows it.
    """
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        try:
            found.append(_objective(part))
        except ValueError as error:
            raise ValueError(f"--slo: {part!r}: {error}") from error
    return tuple(found)


def _objective(text: str) -> Objective:
    if match := _ERRORS.fullmatch(text):
        allowed = parse_share(match[1])
        if not 0.0 < allowed < 1.0:
            raise ValueError("it needs a share between 0 and 1: no run can show that none fails")
        return Objective(text, 1.0 - allowed, "errors")
    match = _QUANTILE.fullmatch(text)
    if match is None:
        raise ValueError("it does not read like p97<250ms, ttft.p99<150ms or errors<1%")
    metric, quantile = match[1] or "latency", float(match[2]) / 100.0
    if metric not in get_args(Metric):
        raise ValueError(f"{metric!r} is none of {', '.join(get_args(Metric))}")
    if not 0.0 < quantile < 1.0:
        raise ValueError("it needs a quantile above p0 and below p100")
    return Objective(text, quantile, cast("Metric", metric), parse_seconds(match[3]))


def check(
    objective: Objective, records: NDArray[Any], confidence: float = 0.99, *, final: bool = True
) -> Check:
    """What these requests show.

    Args:
        objective: What is to hold.
        records: Of `samples.RECORD`; requests that were cancelled or read slowly on purpose do not count.
        confidence: Probability with which a verdict may not be wrong.
        final: A single look at the end, by the exact binomial test. Otherwise one of many looks, after each
            of which the run may stop: the test is then one whose error holds over all of them together (the
            likelihood ratio averaged over the other side of the bound; Ville's inequality).
    """
    relevant = records[counted(records)]
    requests = len(relevant)
    over = int(requests - objective.good(relevant).sum())
    decide = _at_the_end if final else _at_any_time
    return Check(objective, requests, over, decide(over, requests, 1.0 - objective.share, 1.0 - confidence))


def overall(checks: list[Check] | tuple[Check, ...]) -> Verdict:
    """FAIL if one fails, PASS if all pass."""
    verdicts = {check.verdict for check in checks}
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    return Verdict.PASS if verdicts == {Verdict.PASS} else Verdict.UNDECIDED


def _at_the_end(over: int, requests: int, allowed: float, error: float) -> Verdict:
    if binom.cdf(over, requests, allowed) <= error:
        return Verdict.PASS
    if binom.sf(over - 1, requests, allowed) <= error:
        return Verdict.FAIL
    return Verdict.UNDECIDED


def _at_any_time(over: int, requests: int, allowed: float, error: float) -> Verdict:
    a, b = over + 1.0, requests - over + 1.0
    below = float(betainc(a, b, allowed))
    at_bound = over * math.log(allowed) + (requests - over) * math.log1p(-allowed)
    for share, width, verdict in ((below, allowed, Verdict.PASS), (1.0 - below, 1.0 - allowed, Verdict.FAIL)):
        if share > 0.0 and betaln(a, b) + math.log(share / width) - at_bound >= -math.log(error):
            return verdict
    return Verdict.UNDECIDED
