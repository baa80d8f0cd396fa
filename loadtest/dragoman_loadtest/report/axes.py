"""What the pictures have in common: axes of times and rates, labels at the ends of lines, bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from dragoman_loadtest.report import words
from dragoman_loadtest.report.style import COLOURS
from dragoman_loadtest.slo import Objective, parse_objectives

__all__ = ["Bound", "bounds", "draw_bounds", "label_ends", "log_seconds", "positive", "rates", "seconds_run"]

_SHORTEST = 1e-6  # a log axis has no place for 0
_STEPS = (1.0, 2.0, 5.0)
_MARGIN = 1.2
_MINUTES_FROM = 300.0


@dataclass(frozen=True, slots=True)
class Bound:
    """An objective that can be drawn: at least `share` of the requests within `seconds`."""

    metric: str
    share: float
    seconds: float

    @property
    def text(self) -> str:
        """As the objective reads, in units that suit."""
        metric = "" if self.metric == "latency" else f"{self.metric} "
        return f"{metric}p{100.0 * self.share:.4g} < {words.seconds(self.seconds)}"


def bounds(texts: Iterable[str], metrics: Sequence[str] = ("latency",)) -> list[Bound]:
    """The bounds of these objectives on these metrics; what does not parse is left out."""
    found: list[Objective] = []
    for text in texts:
        try:
            found += parse_objectives(text)
        except ValueError:
            continue
    return [Bound(o.metric, o.share, o.bound) for o in found if o.metric in metrics and o.bound > 0.0]


def positive(values: Iterable[float | None]) -> list[float]:
    """Values for a log axis; a gap where there is none."""
    return [max(float(v), _SHORTEST) if v is not None and words.is_number(v) else math.nan for v in values]


def log_seconds(axes: Axes, which: Literal["x", "y"], values: Iterable[float], most: int = 9) -> None:
    """Make an axis a log axis of times that holds these.

    Ticks are at 1, 2 and 5 of each power of ten or, were those more than `most`, at the powers alone.
    """
    finite = [value for value in values if math.isfinite(value)] or [_SHORTEST]
    steps = [step * 10.0**power for power in range(-6, 6) for step in _STEPS]
    low = max((s for s in steps if s <= min(finite) / _MARGIN), default=steps[0])
    high = min((s for s in steps if s >= max(finite) * _MARGIN), default=steps[-1])
    ticks = [s for s in steps if low <= s <= high]
    if len(ticks) > most:
        ticks = [s for s in ticks if f"{s:e}".startswith("1")]
    if which == "x":
        axes.set_xscale("log")
        axes.set_xlim(low, high)
    else:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: words.seconds(value)))


def rates(axis: Axis, most: int = 4) -> None:
    """A linear axis of numbers per second."""
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def seconds_run(axes: Axes, length: float, ticks: int) -> None:
    """An x axis of the seconds of a run."""
    length = max(length, 1.0)
    unit, name = (60.0, "min") if length >= _MINUTES_FROM else (1.0, "s")
    locator = MaxNLocator(ticks, steps=[1, 2, 3, 5, 6, 10], integer=True)
    places = [unit * tick for tick in locator.tick_values(0.0, length / unit) if 0.0 <= unit * tick <= length]
    axes.set_xlim(0.0, length)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g} {name}"))


def draw_bounds(axes: Axes, bounds: Sequence[Bound], pad: float = 10.0) -> None:
    """Dashed lines at the times that objectives name, which are told above the axes, clear of all lines."""
    for bound in bounds:
        axes.axhline(bound.seconds, color=COLOURS["bad"], linewidth=1.2, dashes=(5, 4), zorder=1.5)
    if bounds:
        text = "dashed: " + ", ".join(bound.text for bound in bounds)
        axes.set_title(text, loc="right", color=COLOURS["bad"], pad=pad)


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]], gap: float) -> None:
    """Name lines at their right end, pushed apart where they would touch.

    Args:
        axes: With its limits and scale set.
        labels: Where a line ends on the y axis, its name, its colour.
        gap: Least distance as a share of the axes' height.
    """
    finite = sorted(label for label in labels if math.isfinite(label[0]))
    to_fraction = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_fraction.transform((0.0, y))[1]) for y, _, _ in finite]
    for (_, text, colour), place in zip(finite, _apart(wanted, gap), strict=True):
        axes.annotate(
            text,
            (1.0, place),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )


def _apart(wanted: list[float], gap: float) -> list[float]:
    """Rising places at least `gap` apart and, where there is room, between 0 and 1."""
    places = np.clip(wanted, 0.0, 1.0)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if len(places) and places[-1] > 1.0:
        places[-1] = 1.0
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - gap)
    return [float(place) for place in places]
