"""The highest rate that meets the objectives, and the curve of rates around it.

The search knows nothing of servers: it is given a function that tries a rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Peak", "Trial", "find_peak", "knee", "sweep_rates"]

_LOWEST, _HIGHEST = 0.05, 100_000.0
_STEPS_DOWN = 7
_SWEEP = 12
_SWEEP_FROM, _SWEEP_TO = 0.1, 1.5


@dataclass(frozen=True, slots=True)
class Trial:
    """A rate that was tried."""

    stage: str
    """double, bisect or confirm."""
    rate: float
    met: bool
    """Whether the objectives hold: decided, or else as observed."""
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Peak:
    """What a search has found."""

    rate: float | None
    """The highest rate that met the objectives in every confirming run; None where none did."""
    confirmed: int
    trials: tuple[Trial, ...]


def find_peak(
    try_rate: Callable[[float, str], Trial], start: float, *, precision: float = 0.05, confirmations: int = 5
) -> Peak:
    """Double (or halve) from `start` until the answer changes, bisect, confirm.

    A rate counts as found when `confirmations` runs in a row meet the objectives; where one does not, the
    search goes down by `precision` and begins to confirm anew. From a rate that held at once it climbs by
    `precision` for as long as rates hold: near the peak the same rate passes and fails from run to run, and a
    single failure has sent bisection below what can be confirmed.

    Args:
        try_rate: Tries a rate (requests per second) at a stage.
        start: Where to begin.
        precision: Relative width of the interval at which bisection ends.
        confirmations: Runs that have to agree.
    """
    trials: list[Trial] = []

    def met(rate: float, stage: str) -> bool:
        trials.append(try_rate(rate, stage))
        return trials[-1].met

    bounds = _bracket(met, start)
    if bounds is None:
        return Peak(None, 0, tuple(trials))
    low, high = bounds
    while high / low > 1.0 + precision:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if met(middle, "bisect") else (low, middle)
    rate = _confirmed(lambda rate: all(met(rate, "confirm") for _ in range(confirmations)), low, precision)
    return Peak(rate, confirmations if rate else 0, tuple(trials))


def _bracket(met: Callable[[float, str], bool], start: float) -> tuple[float, float] | None:
    """A rate that is met and one that is not, a factor of two apart."""
    rate = start
    if met(rate, "double"):
        while 2.0 * rate <= _HIGHEST:
            if not met(2.0 * rate, "double"):
                return rate, 2.0 * rate
            rate *= 2.0
        return rate, rate  # beyond what can be sent
    while rate > _LOWEST:
        rate /= 2.0
        if met(rate, "double"):
            return rate, 2.0 * rate
    return None


def _confirmed(holds: Callable[[float], bool], rate: float, precision: float) -> float | None:
    """The last rate that holds, going up from `rate`, or down where it does not hold itself."""
    step = 1.0 + precision
    if holds(rate):
        while rate * step <= _HIGHEST and holds(rate * step):
            rate *= step
        return rate
    for _ in range(_STEPS_DOWN):
        rate /= step
        if holds(rate):
            return rate
    return None


def sweep_rates(peak: float) -> list[float]:
    """Rates from a tenth of the peak to one and a half of it."""
    step = (_SWEEP_TO - _SWEEP_FROM) / (_SWEEP - 1)
    return [peak * (_SWEEP_FROM + i * step) for i in range(_SWEEP)]


def knee(points: list[tuple[float, float]]) -> float | None:
    """The rate beyond which more load costs more latency than it gains throughput.

    That is where power, throughput divided by latency, is greatest (Kleinrock 1979, "Power and deterministic
    rules of thumb for probabilistic problems in computer communications").

    Args:
        points: Throughput and mean latency, by rising rate.

    Returns:
        The throughput at the knee; None without points.
    """
    powers = [(throughput / latency, throughput) for throughput, latency in points if latency > 0.0]
    return max(powers)[1] if powers else None
