"""The pictures of one run: how long requests took, when, by length, and where the time went."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dragoman_loadtest.report import words
from dragoman_loadtest.report.axes import Bound, bounds, label_ends, log_seconds, positive
from dragoman_loadtest.report.pictures_timeline import timeline_picture
from dragoman_loadtest.report.style import COLOURS, Picture, picture

__all__ = ["run_pictures"]

_SHARES = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
_QUANTILES = ("p50", "p97", "p99")
_CURVES = {"service": ("p50", 7.0, 0.4), "latency": ("p99", 2.4, 1.0)}  # colour, width, opacity
_PARTS = {"queue": "queue", "encode": "encode", "decode": "decode", "other": "p50", "elsewhere": "soft"}
_OTHER_SHARE = 0.005  # what the server does beside its named parts is shown from here on


def run_pictures(figures: dict[str, Any]) -> list[Picture]:
    """All pictures that the figures of a run have data for."""
    texts = [str(check.get("objective")) for check in figures.get("objectives") or ()]
    drawn = (
        _percentiles(figures.get("curves") or {}, bounds(texts, ("latency", "service"))),
        timeline_picture(figures, bounds(texts)),
        _by_length(figures.get("by_length") or []),
        _where(figures.get("server_times") or {}),
    )
    return [found for found in drawn if found is not None]


def _percentiles(curves: dict[str, list[list[float]]], limits: list[Bound]) -> Picture | None:
    lines = {name: _curve(curves[name]) for name in _CURVES if len(curves.get(name) or ()) > 1}
    if "latency" not in lines:
        return None
    end = max(lines["latency"][0][-1], 1.0)

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        for name, (x, y) in lines.items():
            colour, width, opacity = _CURVES[name]
            axes.plot(x, y, color=COLOURS[colour], linewidth=width, alpha=opacity)
        times = [value for _, y in lines.values() for value in y]
        log_seconds(axes, "y", [*times, *(bound.seconds for bound in limits)])
        axes.set_xlim(0.0, end)
        for row, bound in enumerate(sorted(limits, key=lambda bound: -bound.seconds)):
            _forbid(axes, bound, row)
        _share_axis(axes, end)
        ends = [(y[-1], name, COLOURS[_CURVES[name][0]]) for name, (_, y) in lines.items()]
        label_ends(axes, ends, 0.065 if wide else 0.08)

    caption = (
        "The longest that the fastest 50%, 90%, 99% took: latency since they were due, service since sent."
    )
    if limits:
        caption += " An objective is met by staying out of its shaded corner."
    return picture("percentiles", "How long requests took", caption, draw, wide_height=340, narrow_height=300)


def _nines(share: float) -> float:
    return -math.log10(max(1.0 - share, 1e-9))


def _curve(curve: list[list[float]]) -> tuple[list[float], list[float]]:
    return [_nines(share) for share, _ in curve], positive(value for _, value in curve)


def _share_axis(axes: Axes, end: float) -> None:
    axes.xaxis.set_major_locator(FixedLocator([_nines(s) for s in _SHARES if _nines(s) <= end]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: words.share(1.0 - 10.0**-x)))
    axes.grid(True, axis="x")


def _forbid(axes: Axes, bound: Bound, row: int) -> None:
    """Shade what the line may not enter: a larger share of the requests taking longer than the bound."""
    right, top = _nines(bound.share), axes.get_ylim()[1]
    axes.fill_between([0.0, right], bound.seconds, top, color=COLOURS["bad"], alpha=0.09, linewidth=0)
    axes.plot([0.0, right, right], [bound.seconds, bound.seconds, top], color=COLOURS["bad"], linewidth=1.2)
    axes.annotate(
        bound.text,
        (0.0, 1.0),  # up where the line of a run that does well never is
        xycoords="axes fraction",
        xytext=(8, -17 - 16 * row),
        textcoords="offset points",
        color=COLOURS["bad"],
    )


def _by_length(buckets: list[dict[str, Any]]) -> Picture | None:
    found = [bucket for bucket in buckets if bucket.get("latency")]
    if not found:
        return None
    times = [positive(bucket["latency"].get(name) for name in _QUANTILES) for bucket in found]

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        for row, x in enumerate(times):
            axes.plot(x, [row] * len(x), color=COLOURS["p97"], alpha=0.3, linewidth=7.0)
            for value, name in zip(x, _QUANTILES, strict=True):
                axes.plot([value], [row], "o", color=COLOURS[name], markersize=9.0, markeredgewidth=0)
        log_seconds(axes, "x", [value for x in times for value in x], 9 if wide else 5)
        _name_dots(axes, times[0])
        _rows(axes, [words.bucket(bucket) for bucket in found])
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")

    caption = "Latency from the median to the 99th percentile, by the number of source tokens."
    height = 62 + 34 * len(found)
    return picture(
        "by-length", "Short texts and long ones", caption, draw, wide_height=height, narrow_height=height
    )


def _name_dots(axes: Axes, first_row: list[float]) -> None:
    """Name the dots of the first row; p97 to the left and p99 to the right, where they may lie close."""
    sides = {"p50": "center", "p97": "right", "p99": "left"}
    for value, (name, side) in zip(first_row, sides.items(), strict=True):
        axes.annotate(
            name,
            (value, 0.0),
            xytext=({"right": -1, "left": 1}.get(side, 0), 10),
            textcoords="offset points",
            ha=side,
            color=COLOURS[name],
        )


def _rows(axes: Axes, names: list[str]) -> None:
    """The y axis of rows with names, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.8)


def _where(times: dict[str, dict[str, float]]) -> Picture | None:
    parts = _parts(times)
    total = sum(parts.values())
    if not total:
        return None

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        start = 0.0
        for row, (name, mean) in enumerate(parts.items()):
            axes.barh(row, mean, left=start, height=0.6, color=COLOURS[_PARTS[name]])
            start += mean
            if row + 1 < len(parts):
                axes.plot(
                    [start, start], [row + 0.3, row + 0.7], color=COLOURS["soft"], linewidth=1.0, alpha=0.6
                )
            _at_right(axes, row, f"{words.seconds(mean)}, {words.share(mean / total)}")
        axes.set_xlim(0.0, total)
        _rows(axes, list(parts))
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        axes.xaxis.set_visible(False)

    caption = "The mean request; elsewhere is the network, the client and what the server does not report."
    height = 20 + 34 * len(parts)
    return picture("where", "Where the time goes", caption, draw, wide_height=height, narrow_height=height)


def _at_right(axes: Axes, row: int, text: str) -> None:
    axes.annotate(
        text,
        (1.0, row),
        xycoords=axes.get_yaxis_transform(),
        xytext=(12, 0),
        textcoords="offset points",
        va="center",
    )


def _parts(times: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean seconds of each part, in the order a request meets them."""
    means = {name: max(found.get("mean", 0.0), 0.0) for name, found in times.items() if found}
    named: dict[str, float] = {name: means[name] for name in ("queue", "encode", "decode") if name in means}
    other = means.get("server", 0.0) - sum(named.values())
    if other > _OTHER_SHARE * (sum(named.values()) + means.get("elsewhere", 0.0)):
        named["other"] = other
    return named | ({"elsewhere": means["elsewhere"]} if "elsewhere" in means else {})
