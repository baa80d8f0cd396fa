"""The tables of a report: every figure that a picture only shows, and what the run was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dragoman_loadtest.report import words

__all__ = ["Table", "figure_tables", "rate_tables", "setting_tables"]

_SHOWN = ("mean", "p50", "p90", "p95", "p97", "p99", "p99.9", "max")
_METRICS = {
    "latency": "latency, from the scheduled time",
    "service": "service time, from sending",
    "ttft": "time to the first token",
    "tpot": "time per token after it",
}
_SERVER = {"server": "server, all in all", "elsewhere": "elsewhere: network, client"}
_OCCUPANCY = {
    "steps": "decode steps",
    "mean_step_seconds": "mean time of a step",
    "rows_per_step": "rows in a step",
    "slots": "slots",
    "padded_rows_share": "rows that are padding",
    "encoder_padding_share": "encoder tokens that are padding",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    worded: tuple[int, ...] = (0,)
    """Columns that hold words; the others hold numbers."""
    tones: Mapping[str, str] = field(default_factory=dict)
    """Colours of cells by their text."""


def figure_tables(figures: dict[str, Any]) -> list[Table]:
    """The tables of one run that have a row."""
    tables = (
        _objectives(figures),
        _percentiles(figures),
        _by_length(figures),
        _errors(figures),
        _slowest(figures),
    )
    return [table for table in tables if table.rows]


def rate_tables(run: dict[str, Any]) -> list[Table]:
    """The rates of a sweep, the trials of a search."""
    tables = (
        _points((run.get("sweep") or {}).get("points") or []),
        _trials((run.get("peak") or {}).get("trials") or []),
    )
    return [table for table in tables if table.rows]


_VERDICTS = {
    "pass": "good",
    "fail": "bad",
    "undecided": "warn",
    "met": "good",
    "not met": "bad",
    "invalid": "bad",
}


def _objectives(figures: dict[str, Any]) -> Table:
    rows = [
        (
            str(check.get("objective")),
            str(check.get("verdict")),
            words.count(check.get("requests")),
            words.count(check.get("over")),
            words.share(check.get("over_share")),
            words.share(check.get("allowed_share")),
        )
        for check in figures.get("objectives") or ()
    ]
    heads = ("objective", "verdict", "requests", "missed by", "share", "allowed")
    note = "A request without an answer misses every objective."
    return Table("Objectives", heads, rows, note, worded=(0, 1), tones=_VERDICTS)


def _percentiles(figures: dict[str, Any]) -> Table:
    named = [(label, (figures.get("times") or {}).get(metric)) for metric, label in _METRICS.items()]
    named.append(("between pieces of a stream", figures.get("token_gap")))
    named += [
        (_SERVER.get(name, f"server: {name}"), found)
        for name, found in (figures.get("server_times") or {}).items()
    ]
    named.append(("late sending", (figures.get("self_check") or {}).get("send_lag")))
    rows = [
        (label, words.count(found.get("count")), *(words.seconds(found.get(name)) for name in _SHOWN))
        for label, found in named
        if found
    ]
    return Table("Times", ("", "count", *_SHOWN), rows)


def _by_length(figures: dict[str, Any]) -> Table:
    buckets = figures.get("by_length") or []
    metrics = [name for name in ("latency", "ttft", "tpot") if any(bucket.get(name) for bucket in buckets)]
    columns = [(metric, name) for metric in metrics for name in ("p50", "p97", "p99")]
    rows = [
        (
            words.bucket(bucket),
            words.count(bucket.get("requests")),
            *(words.seconds((bucket.get(metric) or {}).get(name)) for metric, name in columns),
        )
        for bucket in buckets
    ]
    heads = ("source tokens", "requests", *(f"{metric} {name}" for metric, name in columns))
    return Table("By length", heads, rows)


def _errors(figures: dict[str, Any]) -> Table:
    errors = figures.get("errors") or {}
    rows = [(code, words.count(n)) for code, n in (errors.get("by_code") or {}).items()]
    rows += [(message, words.count(n)) for message, n in (errors.get("messages") or {}).items()]
    note = "Codes first, those of requests cancelled on purpose among them; then what the server wrote."
    return Table("Errors", ("code or message", "requests"), rows, note)


def _slowest(figures: dict[str, Any]) -> Table:
    rows = [
        (
            words.count(found.get("request")),
            words.count(found.get("line")),
            *(words.seconds(found.get(name)) for name in ("at", "latency", "queue", "decode")),
            str(found.get("code")),
            str(found.get("text")),
        )
        for found in figures.get("slowest") or ()
    ]
    heads = ("request", "line", "due at", "latency", "queue", "decode", "end", "text")
    return Table("The slowest requests", heads, rows, worded=(0, 6, 7))


def _occupancy(figures: dict[str, Any]) -> Table:
    found = figures.get("occupancy") or {}
    rows = [(label, words.setting(name, found[name])) for name, label in _OCCUPANCY.items() if name in found]
    return Table("How full the server was", ("", ""), rows)


def _self_check(figures: dict[str, Any]) -> Table:
    found = figures.get("self_check") or {}
    names = ("client_cpu_share", "processes", "dropped", "killed_clients")
    rows = [(name.replace("_", " "), words.setting(name, found[name])) for name in names if name in found]
    return Table("The load generator itself", ("", ""), rows)


def _points(points: list[dict[str, Any]]) -> Table:
    rows = []
    for point in points:
        figures = point.get("figures") or {}
        rates, latency = figures.get("rates") or {}, (figures.get("times") or {}).get("latency") or {}
        valid = (figures.get("self_check") or {}).get("valid", True)
        rows.append(
            (
                words.rate(point.get("rate")),
                str(figures.get("verdict") or words.MISSING) if valid else "invalid",
                *(
                    words.rate(rates.get(name))
                    for name in ("offered", "answered", "goodput", "output_tokens")
                ),
                *(words.seconds(latency.get(name)) for name in ("p50", "p97", "p99")),
                words.share(words.error_share(figures)),
            )
        )
    heads = ("rate", "verdict", "offered", "answered", "goodput", "tokens", "p50", "p97", "p99", "failed")
    return Table("The rates", heads, rows, "Rates and tokens per second.", worded=(0, 1), tones=_VERDICTS)


def _trials(trials: list[dict[str, Any]]) -> Table:
    rows = [
        (
            f"{number}, {trial.get('stage')}",
            "met" if trial.get("met") else "not met",
            str(trial.get("verdict") or words.MISSING),
            words.rate(trial.get("rate")),
            words.count(trial.get("requests")),
            *(words.seconds(trial.get(name)) for name in ("seconds", "p50", "p97", "p99")),
        )
        for number, trial in enumerate(trials, 1)
    ]
    heads = ("trial", "objectives", "verdict", "rate", "requests", "took", "p50", "p97", "p99")
    note = "An undecided trial counts as met where the observed percentile is within its bound."
    return Table("The trials", heads, rows, note, worded=(0, 1, 2), tones=_VERDICTS)


def setting_tables(run: dict[str, Any]) -> list[Table]:
    """What was run, on what, against what."""
    groups = dict((run.get("settings") or {}).items())
    for name in ("corpus", "model", "machine", "versions", "loadgen"):
        groups[name] = run.get(name)
    groups["report"] = {key: run[key] for key in ("schedule_sha256", "schema") if key in run}
    figures = run.get("figures") or {}
    tables = (
        _occupancy(figures),
        _self_check(figures),
        *(Table(name.capitalize(), ("", ""), list(_flat(found))) for name, found in groups.items() if found),
    )
    return [table for table in tables if table.rows]


def _flat(found: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as rows of a name and a value, those that are set."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from _flat(value, f"{name} {key}".strip())
    elif isinstance(found, list) and any(isinstance(part, dict) for part in found):
        for number, part in enumerate(found, 1):
            yield from _flat(part, f"{name} {number}".strip())
    elif (value := words.setting(name, found)) != words.MISSING:
        yield name.removesuffix("_seconds").removesuffix("_bytes").replace("_", " "), value
