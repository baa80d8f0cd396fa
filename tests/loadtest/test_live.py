"""The terminal's view of a run."""

from __future__ import annotations

import math
import re
from io import StringIO
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console

from dragoman_loadtest.live import LiveView, sparkline
from dragoman_loadtest.run import Moment
from dragoman_loadtest.samples import RECORD, Code

GAUGES = {"dragoman_slots_in_use": 7.0, "dragoman_queue_depth": 3.0}


def requests(count: int, **columns: Any) -> NDArray[Any]:
    """Ten requests a second, each answered within 200 ms."""
    records = np.zeros(count, RECORD)
    records["scheduled"] = 1000.0 + np.arange(count) / 10
    records["done"] = records["scheduled"] + 0.2
    for name, value in columns.items():
        records[name] = value
    return records


def shown(records: NDArray[Any], metrics: dict[str, float] | None = None, terminal: bool = True) -> str:
    """What a moment looks like, its lines in one and without escape sequences."""
    output = StringIO()
    console = Console(force_terminal=terminal, file=output, width=100)
    with LiveView(console, "confirm [9/s]") as view:
        view(Moment("measuring", 12.0, 30.0, records, 4, metrics or {}, 10.0))
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue()).split())


def test_a_moment_is_shown_in_figures() -> None:
    text = shown(requests(100), GAUGES)
    assert "confirm [9/s] measuring 12 of 30 s" in text
    assert "in flight 4" in text
    assert "rate 10.0/s p50 200.0 ms p97 / p99 200.0 ms / 200.0 ms" in text
    assert "slots in use 7 queue 3" in text


def test_answers_are_told_from_failures() -> None:
    text = shown(requests(5, code=[0, 0, 0, Code.UNAVAILABLE, Code.UNAVAILABLE]))
    assert "answered 3 failed 2" in text


def test_a_request_that_was_never_sent_does_not_hide_the_rate() -> None:
    records = requests(100)
    records["code"][50], records["done"][50] = Code.DROPPED, math.nan
    assert "rate 10.0/s" in shown(records)


def test_a_moment_before_the_first_answer_is_shown() -> None:
    text = shown(requests(0))
    assert "answered 0 failed 0" in text
    assert "rate 0.0/s p50 - p97 / p99 - / -" in text
    assert "slots" not in text


def test_what_is_no_terminal_is_shown_nothing() -> None:
    assert shown(requests(100), GAUGES, terminal=False) == ""


def test_a_minute_is_shown_second_by_second() -> None:
    bars = re.search(r"p97 by second (\S+)", shown(requests(1500)))
    assert bars is not None
    assert len(bars[1]) == 60


def test_bars_rise_with_the_logarithm() -> None:
    assert sparkline(np.array([1.0, 10.0, 100.0])) == "▁▅█"
    assert sparkline(np.array([0.2, 0.2])) == "▁▁"


def test_what_is_not_known_is_blank() -> None:
    assert sparkline(np.array([1.0, math.nan, 2.0])) == "▁ █"
    assert sparkline(np.array([math.nan])) == sparkline(np.zeros(0)) == ""


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
def test_every_value_has_its_place(values: list[float]) -> None:
    assert len(sparkline(np.array(values))) in (0, len(values))
