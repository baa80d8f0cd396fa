"""The outcome in words, and what a reader has to know before they believe it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dragoman_loadtest.report import words

__all__ = ["Verdict", "notes", "verdict"]

_BADLY_SENT = "the load was not sent as it should have been"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a page says first."""

    word: str
    tone: str
    """Name of a colour: good, bad, warn or plain."""
    sentence: str
    reasons: tuple[str, ...] = ()
    """What the word rests on."""
    warnings: tuple[str, ...] = ()
    """What makes the figures mean less than they seem to."""
    notes: tuple[str, ...] = ()
    """What else explains them."""


def verdict(run: dict[str, Any]) -> Verdict:
    """The headline of a run of any kind."""
    figures = run.get("figures") or {}
    if run.get("sweep"):
        found = _of_sweep(run["sweep"])
        runs = [point.get("figures") or {} for point in run["sweep"].get("points") or ()]
        return replace(
            found, warnings=tuple(dict.fromkeys(text for each in runs for text in _warnings(each)))
        )
    departures = (f"Not by the preset's rules: {text}." for text in run.get("departures") or ())
    warnings = (*_warnings(figures), *departures)
    if run.get("peak"):
        return replace(_of_peak(run["peak"], figures), warnings=warnings)
    return replace(_of_run(figures), warnings=warnings, notes=notes(figures))


def _of_run(figures: dict[str, Any]) -> Verdict:
    client = figures.get("self_check") or {}
    if not client.get("valid", True):
        sentence = f"This run says nothing of the server: {_BADLY_SENT}."
        return Verdict("INVALID", "bad", sentence, tuple(client.get("reasons") or ()))
    checks = figures.get("objectives") or []
    reasons = tuple(_reason(check) for check in checks)

    def named(outcome: str) -> str:
        return words.listed([str(check["objective"]) for check in checks if check["verdict"] == outcome])

    match figures.get("verdict"):
        case "pass":
            return Verdict("PASS", "good", "The server meets every objective.", reasons)
        case "fail":
            return Verdict("FAIL", "bad", f"The server does not meet {named('fail')}.", reasons)
        case "undecided":
            sentence = f"Too few requests to tell whether {named('undecided')} holds: run for longer."
            return Verdict("UNDECIDED", "warn", sentence, reasons)
    return Verdict("MEASURED", "plain", "No objective was set, so there is nothing to pass or fail.")


def _reason(check: dict[str, Any]) -> str:
    if check.get("over_share") is None:
        return f"{check['objective']}: no request to judge by"
    return (
        f"{check['objective']}: {words.share(check['over_share'])} of {words.count(check['requests'])} "
        f"requests missed it, {words.share(check['allowed_share'])} may"
    )


def _of_peak(peak: dict[str, Any], figures: dict[str, Any]) -> Verdict:
    client = figures.get("self_check") or {}
    reasons = tuple(f"The last trial is invalid: {text}" for text in client.get("reasons") or ())
    objectives = words.objectives(peak.get("objectives"))
    if peak.get("rate") is None:
        return Verdict("NO PEAK", "bad", f"No rate that was tried meets {objectives} for good.", reasons)
    confirmed = f"{peak.get('confirmed')} of {peak.get('confirmations')} confirming runs agree"
    sentence = f"The server carries {words.rate(peak['rate'])} requests per second within {objectives}."
    return Verdict("PEAK", "warn" if reasons else "good", sentence, (confirmed, *reasons))


def _of_sweep(sweep: dict[str, Any]) -> Verdict:
    points = sweep.get("points") or []
    tried = [point["rate"] for point in points]
    reasons = []
    if sweep.get("knee") is not None:
        reasons.append(
            f"Beyond the knee at {words.rate(sweep['knee'])}/s, more load costs more than it brings"
        )
    if sweep.get("peak_rate") is not None:
        objective = (
            f", the highest rate within {words.objectives(sweep['objective'])}"
            if sweep.get("objective")
            else ""
        )
        reasons.append(f"The peak is {words.rate(sweep['peak_rate'])}/s{objective}")
    invalid = [
        f"{words.rate(point['rate'])}/s" for point in points if not words.is_valid(point.get("figures"))
    ]
    if invalid:
        reasons.append(f"Invalid at {words.listed(invalid)}: {_BADLY_SENT}")
    span = f" from {words.rate(min(tried))} to {words.rate(max(tried))} requests per second" if tried else ""
    return Verdict("SWEEP", "warn" if invalid else "plain", f"{len(points)} rates{span}.", tuple(reasons))


def _warnings(figures: dict[str, Any]) -> tuple[str, ...]:
    said = []
    if figures.get("loop") == "closed":
        said.append(
            "Closed loop: hides how long a stalled server keeps users waiting, because nobody asks meanwhile."
        )
    if figures.get("interrupted"):
        after = words.seconds(figures.get("seconds"))
        said.append(f"Interrupted after {after}: the figures are those up to then.")
    if figures.get("was_steady") is False:
        cause = (
            "latency still moved when the warm-up ended, so the figures may too"
            if figures.get("warm_up_seconds")
            else "there was no warm-up, so the figures hold a cold start"
        )
        said.append(f"Not steady: {cause}.")
    return tuple(said)


def notes(figures: dict[str, Any]) -> tuple[str, ...]:
    """What explains the figures of a run."""
    said = []
    requests, client = figures.get("requests") or {}, figures.get("self_check") or {}
    if figures.get("stopped_early"):
        said.append(
            f"Stopped early, after {words.seconds(figures.get('seconds'))}: the objectives were decided."
        )
    if still := requests.get("open_at_the_end"):
        said.append(
            f"Requests without an answer at the end: {still:,}; each counts with the age it had by then."
        )
    if spoilt := requests.get("cancelled_on_purpose", 0) + requests.get("read_slowly", 0):
        said.append(f"Requests cancelled or read slowly on purpose: {spoilt:,}; no percentile counts them.")
    if killed := client.get("killed_clients"):
        said.append(f"Clients killed on purpose while they waited: {killed:,}.")
    if figures.get("metrics_error"):
        said.append(f"The server's metrics could not be read: {figures['metrics_error']}")
    return tuple(said)
