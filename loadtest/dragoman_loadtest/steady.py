"""When a warm-up is over: three windows in a row agree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["steady", "window_seconds"]

_WINDOWS = 3
_TOLERANCE = 0.15
_REQUESTS = 10


def window_seconds(rate: float) -> float:
    """Length of a window: a second, or what ten requests take."""
    return max(1.0, _REQUESTS / rate)


def steady(done: NDArray[np.float64], seconds: NDArray[np.float64], now: float, window: float) -> bool:
    """Whether the median latencies of the last three windows are within 15 % of their mean.

    Args:
        done: When each request ended.
        seconds: Its latency.
        now: The time; windows end here.
        window: Their length in seconds.
    """
    medians = []
    for i in range(_WINDOWS):
        inside = (done > now - (i + 1) * window) & (done <= now - i * window)
        if np.count_nonzero(inside) < 3:
            return False
        medians.append(float(np.median(seconds[inside])))
    middle = sum(medians) / _WINDOWS
    return all(abs(median - middle) <= _TOLERANCE * middle for median in medians)
