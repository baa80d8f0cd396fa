"""How the granted cores are divided, found by trying: workers with a batch each, or fewer that are helped.

All workers run one session, whose threads help whoever steps. Many workers of one thread waste least on
waiting for each other; with few rows, or where memory is the limit, fewer and helped ones can win.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dragoman_server.engine.runner import Runner

__all__ = ["Split", "rows_per_second", "splits"]

_ROWS = 16
_SOURCE_TOKENS = 16
_TARGET_TOKENS = 24
_WARM_STEPS = 3
_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Split:
    """A division of cores."""

    workers: int
    threads: int
    """Of the session: each step's own thread, and those that help."""

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads}"


def splits(cores: int, workers: int = 0, threads: int = 0) -> list[Split]:
    """The divisions worth trying; one where `workers` or `threads` says it.

    Args:
        cores: To be kept busy.
        workers: As wanted; 0 leaves it open.
        threads: As wanted; 0 leaves it open.
    """
    if workers or threads:
        workers = workers or max(1, cores - threads + 1)
        return [Split(workers, threads or max(1, cores - workers + 1))]
    counts = sorted({max(1, cores // part) for part in (1, 2, 4, cores)}, reverse=True)
    return [Split(count, cores - count + 1) for count in counts]


def rows_per_second(runners: Sequence[Runner]) -> float:
    """Rows that `runners` decode in a second, all at once, each on a thread of its own."""
    with ThreadPoolExecutor(len(runners)) as pool:
        list(pool.map(_warm, runners))
        started = time.perf_counter()
        rows = sum(pool.map(lambda runner: _decode(runner, started + _SECONDS), runners))
        return rows / (time.perf_counter() - started)


def _warm(runner: Runner) -> None:
    limits = runner.limits
    rows = min(_ROWS, limits.max_rows)
    source = [0] * min(_SOURCE_TOKENS, limits.max_source_tokens)
    runner.encode([source] * rows, [[row] for row in range(rows)])
    for position in range(min(_WARM_STEPS, limits.max_target_tokens)):
        _step(runner, rows, position)


def _decode(runner: Runner, end: float) -> int:
    """Step until `end`, again and again over the same positions; returns the rows decoded."""
    rows = min(_ROWS, runner.limits.max_rows)
    positions = min(_TARGET_TOKENS, runner.limits.max_target_tokens)
    steps = 0
    while time.perf_counter() < end:
        _step(runner, rows, steps % positions)
        steps += 1
    return rows * steps


def _step(runner: Runner, rows: int, position: int) -> None:
    runner.step(np.zeros(rows, np.int64), np.full(rows, position), top_k=1)
