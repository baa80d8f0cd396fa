"""Two runs side by side: is B slower than A, and by how much, beyond chance?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_loadtest.measures import Metric, answered, counted, seconds_of, timed

__all__ = ["Comparison", "compare_answered", "compare_records"]

_QUANTILES = (0.5, 0.9, 0.97, 0.99)
_RESAMPLES = 2000
_WINDOW_SECONDS = 1.0
_SHARE = 0.005


@dataclass(frozen=True, slots=True)
class Comparison:
    """A quantile of B over that of A."""

    metric: str
    """latency or the like; or answered, the share of the requests that were."""
    quantile: str
    a: float
    b: float
    """Seconds, or a share."""
    ratio: float
    low: float
    high: float
    """Bootstrap interval of the ratio, 95 %."""
    regression: bool
    """B is worse, and not by chance: a time grew by more than the threshold, its whole interval above 1; or
    more than half a percent fewer were answered, the whole interval below 1."""


def compare_records(
    a: NDArray[Any], b: NDArray[Any], threshold: float, *, metric: Metric = "latency", seed: int = 0
) -> list[Comparison]:
    """Compare runs of one schedule.

    Latencies of neighbouring requests depend on each other, so whole seconds of the schedule are resampled,
    the same ones of both runs (a paired block bootstrap, Künsch 1989).

    Args:
        a: Records of the run to compare with.
        b: Records of the run in question.
        threshold: A quantile that grew by more than this share is a regression, if chance is ruled out.
        metric: What is compared.
        seed: Of the resampling.

    Raises:
        ValueError: a run has no request to compare.
    """
    left, right = _by_window(a, metric), _by_window(b, metric)
    windows = max(len(left), len(right))
    left += [np.zeros(0)] * (windows - len(left))
    right += [np.zeros(0)] * (windows - len(right))
    if not sum(map(len, left)) or not sum(map(len, right)):
        raise ValueError(f"nothing to compare: a run has no answered request with a {metric}")
    generator = np.random.default_rng(seed)
    resampled = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(0, windows, windows)
        pair = [np.concatenate([side[i] for i in drawn]) for side in (left, right)]
        if all(map(len, pair)):
            resampled.append(np.quantile(pair[1], _QUANTILES) / np.quantile(pair[0], _QUANTILES))
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    before, after = (np.quantile(np.concatenate(side), _QUANTILES) for side in (left, right))
    return [
        Comparison(
            metric,
            f"p{100 * quantile:g}",
            float(before[i]),
            float(after[i]),
            float(after[i] / before[i]),
            float(low[i]),
            float(high[i]),
            bool(after[i] / before[i] > 1.0 + threshold and low[i] > 1.0),
        )
        for i, quantile in enumerate(_QUANTILES)
    ]


def compare_answered(a: NDArray[Any], b: NDArray[Any], *, seed: int = 0) -> Comparison:
    """Compare the shares of requests that were answered; arguments are those of `compare_records`.

    A server that refuses half of its requests is quick with the rest.
    """
    windows = 1 + int(max(records["scheduled"].max(initial=0.0) for records in (a, b)) / _WINDOW_SECONDS)
    sent, good = (
        np.array([_counts(records, mask(records), windows) for records in (a, b)])
        for mask in (counted, lambda records: counted(records) & answered(records))
    )  # [run, window]
    drawn = np.random.default_rng(seed).integers(0, windows, (_RESAMPLES, windows))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = good[:, drawn].sum(axis=2) / sent[:, drawn].sum(axis=2)  # [run, resample]
        ratios = shares[1] / shares[0]
        before, after = good.sum(axis=1) / sent.sum(axis=1)
    known = ratios[np.isfinite(ratios)]
    low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (0.0, 1.0)
    regression = bool(after < before - _SHARE and high < 1.0)
    ratio = float(after / before) if before else 1.0
    return Comparison(
        "answered", "share", float(before), float(after), ratio, float(low), float(high), regression
    )


def _counts(records: NDArray[Any], mask: NDArray[np.bool_], windows: int) -> NDArray[np.int64]:
    inside = np.floor(records["scheduled"][mask] / _WINDOW_SECONDS).astype(int)
    return np.bincount(np.clip(inside, 0, windows - 1), minlength=windows)


def _by_window(records: NDArray[Any], metric: Metric) -> list[NDArray[np.float64]]:
    chosen = records[timed(records)]
    values = seconds_of(chosen, metric)
    chosen, values = chosen[np.isfinite(values)], values[np.isfinite(values)]
    if not len(values):
        return []
    windows = np.floor(chosen["scheduled"] / _WINDOW_SECONDS).astype(int)
    return [values[windows == window] for window in range(int(windows.max()) + 1)]
