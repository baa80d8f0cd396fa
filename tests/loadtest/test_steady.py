"""A warm-up is over once three windows in a row agree."""

from __future__ import annotations

import numpy as np
import pytest

from dragoman_loadtest.steady import steady, window_seconds


def is_steady(medians: tuple[float, ...], now: float | None = None, per_window: int = 10) -> bool:
    """Whether windows of a second with such medians are."""
    done = (np.arange(len(medians) * per_window) + 0.5) / per_window
    return steady(done, np.repeat(medians, per_window), float(len(medians)) if now is None else now, 1.0)


def test_three_windows_that_agree_are_steady() -> None:
    assert is_steady((1.0, 1.0, 1.0))
    assert is_steady((1.0, 1.1, 1.2))


@pytest.mark.parametrize("medians", [(1.0, 1.0, 1.4), (1.4, 1.0, 1.0), (1.0, 1.4, 1.0), (3.0, 2.0, 1.0)])
def test_windows_that_differ_are_not(medians: tuple[float, ...]) -> None:
    assert not is_steady(medians)


def test_only_the_last_three_windows_count() -> None:
    assert is_steady((9.0, 1.0, 1.0, 1.0))
    assert not is_steady((1.0, 1.0, 1.0, 9.0))


def test_two_windows_are_not_enough() -> None:
    assert not is_steady((1.0, 1.0))
    assert not is_steady(())


def test_a_window_with_hardly_a_request_says_nothing() -> None:
    assert not is_steady((1.0, 1.0, 1.0), per_window=2)
    assert not is_steady((1.0, 1.0, 1.0), now=4.5)


def test_one_slow_request_does_not_unsettle_a_window() -> None:
    done, seconds = (np.arange(30) + 0.5) / 10, np.ones(30)
    seconds[25] = 100.0
    assert steady(done, seconds, 3.0, 1.0)


def test_a_window_is_long_enough_for_ten_requests() -> None:
    assert window_seconds(0.5) == pytest.approx(20.0)
    assert window_seconds(10.0) == window_seconds(5000.0) == 1.0
