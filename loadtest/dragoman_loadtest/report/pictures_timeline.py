"""The picture of a run second by second."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dragoman_loadtest.report.axes import (
    Bound,
    draw_bounds,
    label_ends,
    log_seconds,
    positive,
    rates,
    seconds_run,
)
from dragoman_loadtest.report.style import COLOURS, Picture, picture

__all__ = ["timeline_picture"]

_QUANTILES = ("p50", "p97", "p99")
_GAUGES = {
    "queue_depth": ("queue", "requests in the queue"),
    "slots_in_use": ("decode", "decoding slots in use"),
}
_CROWDED = 60  # seconds; beyond, they are not marked one by one
_HEIGHTS = {1: 170, 2: 390, 3: 510}  # CSS pixels by number of panels


def timeline_picture(figures: dict[str, Any], limits: list[Bound]) -> Picture | None:
    """Requests, latency and the server's gauges on one time axis; those that there are."""
    points: list[dict[str, float]] = figures.get("timeline") or []
    if not points:
        return None
    gauges = [name for name in _GAUGES if any(name in point for point in points)]
    has_latency = any("p50" in point for point in points)
    length = max(figures.get("seconds") or 0.0, points[-1]["second"])
    ratios = [1.0, *[1.7] * has_latency, *[0.9] * bool(gauges)]

    def draw(figure: Figure, wide: bool) -> None:
        column = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        _draw_requests(column[0], points, length)
        if has_latency:
            _draw_quantiles(column[1], points, limits)
        if gauges:
            _draw_gauges(column[-1], points, gauges)
        seconds_run(column[0], length, 10 if wide else 5)

    caption = "What was asked in each second, and how long the requests of that second took."
    height = _HEIGHTS[len(ratios)]
    return picture("timeline", "Second by second", caption, draw, wide_height=height, narrow_height=height)


def _draw_requests(axes: Axes, points: list[dict[str, float]], length: float) -> None:
    edges = [point["second"] for point in points]
    edges.append(max(min(edges[-1] + 1.0, length), edges[-1] + 1e-3))
    widths = np.diff(edges)  # the last second may not be whole
    requests = np.array([point.get("requests", 0.0) for point in points]) / widths
    errors = np.array([point.get("errors", 0.0) for point in points]) / widths
    axes.stairs(requests, edges, fill=True, color=COLOURS["p50"], alpha=0.2, linewidth=0)
    axes.stairs(requests, edges, baseline=None, color=COLOURS["p50"], linewidth=1.6)
    title = "requests per second"
    if errors.any():
        axes.stairs(errors, edges, fill=True, color=COLOURS["bad"], linewidth=0)
        title += ", in red those that failed"
    axes.set_title(title)
    axes.set_ylim(0.0, max(1.0, 1.08 * float(requests.max()), float(errors.max())))
    rates(axes.yaxis, 3)


def _draw_quantiles(axes: Axes, points: list[dict[str, float]], limits: list[Bound]) -> None:
    middles = [point["second"] + 0.5 for point in points]
    lines = {name: positive(point.get(name) for point in points) for name in _QUANTILES}
    axes.fill_between(middles, lines["p50"], lines["p99"], color=COLOURS["p50"], alpha=0.13, linewidth=0)
    for name, line in lines.items():
        marker = "o" if len(points) <= _CROWDED else ""
        axes.plot(middles, line, color=COLOURS[name], linewidth=1.8, marker=marker, markersize=3.4)
    times = [value for line in lines.values() for value in line]
    log_seconds(axes, "y", [*times, *(bound.seconds for bound in limits)], 6)
    axes.set_title("latency")
    draw_bounds(axes, limits)
    label_ends(axes, [(_last(line), name, COLOURS[name]) for name, line in lines.items()], 0.11)


def _last(line: list[float]) -> float:
    return next((value for value in reversed(line) if math.isfinite(value)), math.nan)


def _draw_gauges(axes: Axes, points: list[dict[str, float]], names: list[str]) -> None:
    ends, highest = [], 1.0
    for name in names:
        colour = COLOURS[_GAUGES[name][0]]
        x, y = zip(*((point["second"], point[name]) for point in points if name in point), strict=True)
        axes.plot(x, y, color=colour, linewidth=1.8, drawstyle="steps-post")
        highest = max(highest, *y)
        ends.append((y[-1], name.partition("_")[0], colour))
    axes.set_title(", ".join(_GAUGES[name][1] for name in names))
    axes.set_ylim(0.0, 1.1 * highest)
    rates(axes.yaxis, 3)
    label_ends(axes, ends, 0.2)
