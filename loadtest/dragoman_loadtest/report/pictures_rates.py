"""The pictures of many runs: the curve of a sweep, and the trials of a search for the peak."""

from __future__ import annotations

import math
from itertools import groupby, pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dragoman_loadtest.report import words
from dragoman_loadtest.report.axes import bounds, draw_bounds, label_ends, log_seconds, positive, rates
from dragoman_loadtest.report.style import COLOURS, Picture, picture

__all__ = ["peak_pictures", "sweep_pictures"]

_QUANTILES = ("p50", "p97", "p99")
_STAGES = {"double": "doubling", "bisect": "bisecting", "confirm": "confirming"}
_LETTER = 6.6  # CSS pixels, about
_OFFERED = "requests offered per second"


def sweep_pictures(sweep: dict[str, Any]) -> list[Picture]:
    """Latency, throughput and failures against the offered rate."""
    points = [point for point in sweep.get("points") or () if words.is_number(point.get("rate"))]
    if not points:
        return []
    drawn = [_throughput(sweep, points)]
    if any(_latency(point).get("p50") for point in points):
        drawn.insert(0, _latency_curve(sweep, points))
    if any(words.error_share(point["figures"]) for point in points):
        drawn.append(_failures(sweep, points))
    return drawn


def _latency(point: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = ((point.get("figures") or {}).get("times") or {}).get("latency") or {}
    return found


def _latency_curve(sweep: dict[str, Any], points: list[dict[str, Any]]) -> Picture:
    limits = bounds([sweep.get("objective") or ""])
    x = [point["rate"] for point in points]

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        lines = {name: positive(_latency(point).get(name) for point in points) for name in _QUANTILES}
        for name, line in lines.items():
            axes.plot(x, line, color=COLOURS[name], marker="o", markersize=4.5)
        log_seconds(axes, "y", [v for line in lines.values() for v in line] + [b.seconds for b in limits])
        draw_bounds(axes, limits, pad=42.0)
        _hollow(axes, points, list(lines.values()))
        _offered(axes, x)
        _mark(axes, sweep)
        label_ends(axes, [(line[-1], name, COLOURS[name]) for name, line in lines.items()], 0.075)

    caption = _caption(
        "Left of the knee more load is nearly free; right of the peak objectives fail.", points
    )
    return picture("curve", "Latency as the load grows", caption, draw, wide_height=350, narrow_height=310)


def _throughput(sweep: dict[str, Any], points: list[dict[str, Any]]) -> Picture:
    x = [point["rate"] for point in points]
    found = [(point.get("figures") or {}).get("rates") or {} for point in points]

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        answered, good = ([r.get(name, math.nan) for r in found] for name in ("answered", "goodput"))
        axes.plot([0.0, max(x)], [0.0, max(x)], color=COLOURS["soft"], linewidth=1.2, dashes=(1, 3))
        axes.fill_between(x, good, color=COLOURS["good"], alpha=0.14, linewidth=0)
        axes.plot(x, answered, color=COLOURS["p99"], marker="o", markersize=4.5)
        axes.plot(x, good, color=COLOURS["good"], marker="o", markersize=4.5)
        _hollow(axes, points, [answered, good])
        _offered(axes, x)
        axes.set_ylim(0.0, 1.05 * max(x))
        rates(axes.yaxis)
        _mark(axes, sweep)
        ends = [(max(x), "offered", COLOURS["soft"]), (answered[-1], "answered", COLOURS["p99"])]
        label_ends(axes, [*ends, (good[-1], "good", COLOURS["good"])], 0.075)

    caption = _caption("Requests per second that came back, and that came back within objectives.", points)
    return picture("throughput", "What comes out of what goes in", caption, draw, wide_height=340)


def _failures(sweep: dict[str, Any], points: list[dict[str, Any]]) -> Picture:
    x = [point["rate"] for point in points]
    shares = [words.error_share(point["figures"]) or 0.0 for point in points]

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        width = 0.55 * min((b - a for a, b in pairwise(x)), default=x[0])
        axes.bar(x, shares, width=width, color=COLOURS["bad"])
        _offered(axes, x)
        axes.set_ylim(0.0, 1.1 * max(shares))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: words.share(share)))
        _mark(axes, sweep)

    caption = "Share of the requests that were refused, ran out of time or failed otherwise."
    return picture("failures", "What fails", caption, draw, wide_height=210, narrow_height=210)


def _hollow(axes: Axes, points: list[dict[str, Any]], lines: list[list[float]]) -> None:
    """Take the filling out of the dots of invalid runs."""
    for i, point in enumerate(points):
        if not words.is_valid(point.get("figures")):
            x, y = [point["rate"]] * len(lines), [line[i] for line in lines]
            axes.plot(
                x, y, "o", color=COLOURS["card"], markeredgecolor=COLOURS["bad"], markersize=6.0, zorder=3
            )


def _caption(text: str, points: list[dict[str, Any]]) -> str:
    valid = all(words.is_valid(point.get("figures")) for point in points)
    return text if valid else f"{text} Hollow dots are invalid."


def _offered(axes: Axes, x: list[float]) -> None:
    axes.set_xlim(0.0, 1.03 * max(x))
    rates(axes.xaxis, 6)
    axes.set_xlabel(_OFFERED)


def _mark(axes: Axes, sweep: dict[str, Any]) -> None:
    """Lines at the knee and the peak, named above the axes; two that touch on two lines."""
    marks = [(sweep.get("knee"), "knee", "warn"), (sweep.get("peak_rate"), "peak", "good")]
    known = [(float(value), name, colour) for value, name, colour in marks if value is not None]
    for i, (value, name, colour) in enumerate(known):
        axes.axvline(value, color=COLOURS[colour], linewidth=1.2, zorder=1.5)
        axes.annotate(
            f"{name} {words.rate(value)}/s",
            (value, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 5 if i + 1 == len(known) else 20),
            textcoords="offset points",
            ha="center",
            color=COLOURS[colour],
        )


def peak_pictures(peak: dict[str, Any]) -> list[Picture]:
    """The trials in their order."""
    trials = [trial for trial in peak.get("trials") or () if words.is_number(trial.get("rate"))]
    if not trials:
        return []
    limits = bounds([peak.get("objectives") or ""])
    timed = any(trial.get("p50") is not None for trial in trials)

    def draw(figure: Figure, wide: bool) -> None:
        panels = 2 if timed else 1
        ratios = [1.2, 1.0][:panels]
        column = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        _draw_rates(column[0], trials, peak.get("rate"))
        if timed:
            _draw_times(column[1], trials)
            draw_bounds(column[1], limits)
        for axes in column:
            _stages(axes, trials)
        _name_stages(column[0], trials, (760 if wide else 260) / len(trials))
        column[-1].xaxis.set_major_locator(MaxNLocator(12 if wide else 6, integer=True))
        column[-1].set_xlabel("trial")

    caption = "Each trial is one run: green where the objectives held, a red cross where they did not."
    height = 460 if timed else 260
    return [
        picture("trials", "How the peak was found", caption, draw, wide_height=height, narrow_height=height)
    ]


def _draw_rates(axes: Axes, trials: list[dict[str, Any]], found: float | None) -> None:
    numbers = list(range(1, len(trials) + 1))
    axes.plot(numbers, [trial["rate"] for trial in trials], color=COLOURS["line"], linewidth=1.4)
    for met, marker, colour in ((True, "o", "good"), (False, "X", "bad")):
        chosen = [(n, t["rate"]) for n, t in zip(numbers, trials, strict=True) if bool(t.get("met")) is met]
        x, y = zip(*chosen, strict=True) if chosen else ((), ())
        axes.plot(x, y, marker, color=COLOURS[colour], markersize=8.5, markeredgewidth=0)
    axes.set_title("requests offered per second", pad=26.0)
    axes.set_ylim(0.0, 1.12 * max(trial["rate"] for trial in trials))
    rates(axes.yaxis)
    if found is not None:
        axes.axhline(found, color=COLOURS["good"], linewidth=1.2, zorder=1.5)
        label_ends(axes, [(found, f"{words.rate(found)}/s", COLOURS["good"])], 0.1)


def _draw_times(axes: Axes, trials: list[dict[str, Any]]) -> None:
    lines = {name: positive(trial.get(name) for trial in trials) for name in _QUANTILES}
    for i, (low, high) in enumerate(zip(lines["p50"], lines["p99"], strict=True)):
        axes.plot([i + 1, i + 1], [low, high], color=COLOURS["p97"], alpha=0.35, linewidth=4.0)
    for name, line in lines.items():
        axes.plot(range(1, len(line) + 1), line, "o", color=COLOURS[name], markersize=5.0)
    log_seconds(axes, "y", [value for line in lines.values() for value in line], 6)
    axes.set_title("latency")
    label_ends(axes, [(line[-1], name, COLOURS[name]) for name, line in lines.items()], 0.13)


def _bands(trials: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Stages that follow each other: name, first and last trial."""
    bands, first = [], 1
    for stage, group in groupby(str(trial.get("stage", "")) for trial in trials):
        last = first + len(list(group)) - 1
        bands.append((stage, first, last))
        first = last + 1
    return bands


def _stages(axes: Axes, trials: list[dict[str, Any]]) -> None:
    for i, (_, first, last) in enumerate(_bands(trials)):
        if i % 2:
            axes.axvspan(first - 0.5, last + 0.5, color=COLOURS["soft"], alpha=0.08, linewidth=0)
    axes.set_xlim(0.5, len(trials) + 0.5)


def _name_stages(axes: Axes, trials: list[dict[str, Any]], pixels: float) -> None:
    """The stages' names above the axes, as far as they fit."""
    for stage, first, last in _bands(trials):
        names = (_STAGES.get(stage, stage), stage)
        room = pixels * (last - first + 1)
        name = next((name for name in names if _LETTER * len(name) <= room), "")
        axes.annotate(
            name,
            ((first + last) / 2, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            color=COLOURS["soft"],
            fontsize=11,
        )
