"""Durations and shares as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_loadtest.units import milliseconds, parse_seconds, parse_share


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("250ms", 0.25),
        ("80us", 80e-6),
        ("1.5m", 90.0),
        ("2h", 7200.0),
        ("7", 7.0),
        (".5s", 0.5),
        (" 1s ", 1.0),
    ],
)
def test_a_duration_reads_as_it_is_written(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1d", "nan", "inf", "1e3", "1s2", "."])
def test_what_is_no_duration_is_shown_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="no duration") as caught:
        parse_seconds(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("0", 0.0), ("100%", 1.0), ("1", 1.0)]
)
def test_a_share_reads_as_it_is_written(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "5", "101%", "-1%", "nan", "inf", "half"])
def test_what_is_no_share_is_shown_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="no share") as caught:
        parse_share(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 100))
def test_percentages_of_a_whole_add_up_to_at_most_one(percent: int) -> None:
    assert parse_share(f"{percent}%") + parse_share(f"{100 - percent}%") <= 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (0.0, "0.0 ms"),
        (1.5, "1.50 s"),
        (4000.0, "4,000.00 s"),
        (None, "-"),
        (math.nan, "-"),
    ],
)
def test_a_time_reads_well(seconds: float | None, text: str) -> None:
    assert milliseconds(seconds) == text
