"""Which requests count, and what their times are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dragoman_loadtest.measures import answered, counted, seconds_of, timed
from dragoman_loadtest.samples import RECORD, Code
from dragoman_loadtest.schedule import Fate


def request(**columns: Any) -> NDArray[Any]:
    """One request that was due at 1 s, left at 3 s and was answered at 4 s."""
    record = np.zeros(1, RECORD)
    times = {"scheduled": 1.0, "sent": 3.0, "first": math.nan, "done": 4.0}
    for name, value in (times | columns).items():
        record[name] = value
    return record


def test_latency_counts_from_the_schedule_and_service_from_sending() -> None:
    assert seconds_of(request(), "latency") == [3.0]
    assert seconds_of(request(), "service") == [1.0]


def test_the_first_token_counts_from_the_schedule() -> None:
    assert seconds_of(request(first=3.5), "ttft") == [2.5]
    assert np.isnan(seconds_of(request(), "ttft")).all()


def test_time_per_token_is_of_those_after_the_first() -> None:
    assert seconds_of(request(first=3.5, output_tokens=6), "tpot") == pytest.approx([0.1])


@pytest.mark.parametrize("tokens", [0, 1])
def test_without_a_second_token_there_is_no_time_per_token(tokens: int) -> None:
    assert np.isnan(seconds_of(request(first=3.5, output_tokens=tokens), "tpot")).all()


def test_an_open_request_is_timed_with_its_age() -> None:
    record = request(code=Code.OPEN, sent=1.0, done=61.0)
    assert timed(record).all()
    assert not answered(record).any()
    assert seconds_of(record, "latency") == [60.0]


@pytest.mark.parametrize("code", [c for c in Code if c not in (Code.OK, Code.OPEN)])
def test_a_refusal_counts_but_its_time_does_not(code: Code) -> None:
    record = request(code=code)
    assert counted(record).all()
    assert not timed(record).any()


@pytest.mark.parametrize("fate", [Fate.CANCEL, Fate.READ_SLOWLY])
@pytest.mark.parametrize("code", [Code.OK, Code.CANCELLED, Code.OPEN])
def test_what_the_client_spoilt_says_nothing_of_the_server(fate: Fate, code: Code) -> None:
    record = request(fate=fate, code=code)
    assert not counted(record).any()
    assert not timed(record).any()


def test_no_requests_have_no_times() -> None:
    nothing = np.zeros(0, RECORD)
    assert len(seconds_of(nothing, "tpot")) == len(timed(nothing)) == 0
