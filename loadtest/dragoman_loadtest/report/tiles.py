"""The figures that a reader looks for first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dragoman_loadtest.report import words

__all__ = ["Tile", "rate_tiles", "run_tiles"]

_LATENCY = {"p50": "half the requests", "p97": "97 of 100 requests", "p99": "99 of 100 requests"}
_STREAMED = {"ttft": "to the first token", "tpot": "per token after it"}
_GOOD = "answered within the objectives"


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure."""

    name: str
    value: str
    unit: str = ""
    note: str = ""
    tone: str = "plain"
    """Name of a colour: good, bad or plain."""


def rate_tiles(run: dict[str, Any]) -> list[list[Tile]]:
    """What many runs have found together: the peak, the knee."""
    peak = [] if run.get("sweep") else _of_peak(run.get("peak") or {})
    return [row for row in (peak, _of_sweep(run.get("sweep") or {})) if row]


def run_tiles(figures: dict[str, Any], answers: dict[str, Any] | None) -> list[list[Tile]]:
    """Of one run, a row of throughput and whether it was right, and a row of times; what there is of them."""
    rows = (
        _rates(figures) + _errors(figures) + _identical(answers or {}),
        _times(figures.get("times") or {}),
    )
    return [row for row in rows if row]


def _of_peak(peak: dict[str, Any]) -> list[Tile]:
    if peak.get("rate") is None:
        return []
    confirmed = f"confirmed by {peak.get('confirmed')} of {peak.get('confirmations')} runs"
    found = [Tile("peak", words.rate(peak["rate"]), "/s", confirmed, "good")]
    if peak.get("goodput") is not None:
        found.append(Tile("goodput at the peak", words.rate(peak["goodput"]), "/s", _GOOD))
    return [*found, Tile("trials", words.count(len(peak.get("trials") or ())), "", "runs of the search")]


def _of_sweep(sweep: dict[str, Any]) -> list[Tile]:
    runs = [point.get("figures") or {} for point in sweep.get("points") or ()]
    goodputs = [figures["rates"]["goodput"] for figures in runs if figures.get("rates")]
    found = []
    if sweep.get("knee") is not None:
        found.append(Tile("knee", words.rate(sweep["knee"]), "/s", "most throughput for its latency"))
    if sweep.get("peak_rate") is not None:
        found.append(Tile("peak", words.rate(sweep["peak_rate"]), "/s", sweep.get("objective") or ""))
    if goodputs:
        found.append(Tile("most goodput", words.rate(max(goodputs)), "/s", _GOOD))
    return found


def _rates(figures: dict[str, Any]) -> list[Tile]:
    rates = figures.get("rates") or {}
    if not rates:
        return []
    shown = {name: words.rate(value) for name, value in rates.items()}
    missing = words.MISSING
    objectives = "within the objectives" if figures.get("objectives") else "no objective set"
    return [
        Tile("offered", shown.get("offered", missing), "/s", f"{figures.get('loop', 'open')} loop"),
        Tile(
            "answered", shown.get("answered", missing), "/s", f"{shown.get('sentences', missing)} sentences/s"
        ),
        Tile("goodput", shown.get("goodput", missing), "/s", objectives),
        Tile(
            "output tokens",
            shown.get("output_tokens", missing),
            "/s",
            f"{shown.get('source_tokens', missing)}/s in",
        ),
    ]


def _errors(figures: dict[str, Any]) -> list[Tile]:
    failed = (figures.get("requests") or {}).get("failed")
    if failed is None:
        return []
    share = words.error_share(figures)
    note = "no request" if share is None else f"{words.share(share)} of the requests"
    return [Tile("errors", words.count(failed), "", note, "bad" if failed else "good")]


def _identical(answers: dict[str, Any]) -> list[Tile]:
    share = answers.get("identical_share")
    if share is None:
        return []
    note = f"{words.count(answers.get('identical'))} of {words.count(answers.get('compared'))} answers"
    return [Tile("identical", words.share(share), "", note, "good" if share == 1.0 else "bad")]


def _times(times: dict[str, dict[str, float]]) -> list[Tile]:
    latency = times.get("latency") or {}
    found = [
        _timed(f"latency {name}", latency[name], note) for name, note in _LATENCY.items() if name in latency
    ]
    for metric, note in _STREAMED.items():
        if values := times.get(metric) or {}:
            found.append(
                _timed(f"{metric} p50", values["p50"], f"{note}; p99 {words.seconds(values['p99'])}")
            )
    return found


def _timed(name: str, value: float, note: str) -> Tile:
    number, space, unit = words.seconds(value).partition(" ")
    return Tile(name, number, f"{space}{unit}", note)
