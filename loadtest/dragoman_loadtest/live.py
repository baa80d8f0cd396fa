"""A run as it happens, in the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dragoman_loadtest.measures import answered, counted, seconds_of, timed
from dragoman_loadtest.run import Moment
from dragoman_loadtest.units import milliseconds

__all__ = ["LiveView", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"
_SECONDS_SHOWN = 60


def sparkline(values: NDArray[np.float64]) -> str:
    """Values as bars on a logarithmic scale; a blank for nan."""
    known = values[np.isfinite(values) & (values > 0.0)]
    if not len(known):
        return ""
    low, high = np.log(known.min()), np.log(known.max())
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        _BARS[round((np.log(value) - low) * scale)] if np.isfinite(value) and value > 0.0 else " "
        for value in values
    )


class LiveView:
    """Shows moments of a run on a terminal; on anything else, nothing. Use as a context manager."""

    def __init__(self, console: Console, title: str = "") -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._enabled = console.is_terminal
        self.title = title
        """What is being done; shown above the figures."""

    def __call__(self, moment: Moment) -> None:
        """Show it."""
        if self._enabled:
            self._live.update(self._rendered(moment))

    def _rendered(self, moment: Moment) -> RenderableType:
        records = moment.records
        planned = f" of {moment.planned:.0f}" if moment.planned else ""
        head = Text(f"{self.title}  {moment.phase}  {moment.elapsed:.0f}{planned} s".strip(), style="bold")
        failed = int(np.count_nonzero(counted(records) & ~answered(records)))
        table = Table.grid(padding=(0, 3))
        ended = records["done"][np.isfinite(records["done"])]
        recent = ended > (ended.max(initial=0.0) - 3.0)
        per_second = np.count_nonzero(recent) / min(3.0, max(moment.elapsed, 0.5))
        table.add_row(
            "answered",
            f"{np.count_nonzero(answered(records)):,}",
            "failed",
            f"{failed:,}",
            "in flight",
            f"{moment.in_flight:,}",
        )
        latency = seconds_of(records[timed(records)], "latency")
        shown = (
            [milliseconds(float(np.quantile(latency, q))) for q in (0.5, 0.97, 0.99)]
            if len(latency)
            else ["-"] * 3
        )
        table.add_row(
            "rate", f"{per_second:,.1f}/s", "p50", shown[0], "p97 / p99", f"{shown[1]} / {shown[2]}"
        )
        if moment.metrics:
            gauges = [
                f"{moment.metrics.get(f'dragoman_{n}', 0.0):.0f}" for n in ("slots_in_use", "queue_depth")
            ]
            table.add_row("slots in use", gauges[0], "queue", gauges[1])
        return Group(head, table, Text(f"p97 by second  {sparkline(_by_second(records))}", style="dim"))

    def __enter__(self) -> Self:
        if self._enabled:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._enabled:
            self._live.stop()


def _by_second(records: NDArray[Any]) -> NDArray[np.float64]:
    """The 97th percentile of latency in each of the last seconds."""
    chosen = records[timed(records)]
    if not len(chosen):
        return np.zeros(0)
    second = np.floor(chosen["done"]).astype(int)
    latency = seconds_of(chosen, "latency")
    last = int(second.max())
    first = max(int(second.min()), last - _SECONDS_SHOWN + 1)
    values = [latency[second == s] for s in range(first, last + 1)]
    return np.array([float(np.quantile(v, 0.97)) if len(v) else np.nan for v in values])
