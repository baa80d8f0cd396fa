"""What `dragoman loadtest` does: one run, a search for the peak, a sweep, or two servers in turns."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dragoman_loadtest.compare import Comparison, compare_answered, compare_records
from dragoman_loadtest.figures import figures
from dragoman_loadtest.golden import compare_answers, golden_answers
from dragoman_loadtest.run import Measurement, Moment, Plan, measure
from dragoman_loadtest.samples import Collection
from dragoman_loadtest.schedule import Schedule
from dragoman_loadtest.search import Peak, Trial, find_peak, knee, sweep_rates
from dragoman_loadtest.server_view import describe_model
from dragoman_loadtest.slo import Verdict, check, overall
from dragoman_loadtest.store import description, write_requests, write_run

__all__ = ["ClientBottleneckError", "Progress", "Session"]


class ClientBottleneckError(ValueError):
    """The load generator could not send as fast as it should: nothing can be said of the server."""


class Progress(Protocol):
    """Shows how far a session is."""

    def watching(self, title: str) -> AbstractContextManager[Callable[[Moment], None]]:
        """A watcher of one run."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def asking(self, done: int, total: int) -> None:
        """How many texts the unloaded server has been asked for."""


class Session:
    """Runs against one server, whose results go to one folder.

    Args:
        plan: What is run.
        out: The folder.
        progress: Is told how far it is.
        check_answers: Compare the answers of a single run with those of the unloaded server.

    Raises:
        ConnectionError: the server does not answer.
        ValueError: it has no such model.
    """

    def __init__(self, plan: Plan, out: Path, progress: Progress, check_answers: bool = True) -> None:
        self.plan = plan
        self.out = out
        self.progress = progress
        self._check_answers = check_answers
        self.model = describe_model(plan.target, plan.options)

    def single(self) -> dict[str, Any]:
        """One run."""
        measurement = self._measured(self.plan, "")
        run = {
            **description(self.plan, "run", self.model),
            "schedule_sha256": measurement.schedule.sha256,
            "figures": figures(self.plan, measurement),
            "answers": self._answers(measurement),
        }
        write_requests(self.out, measurement)
        write_run(self.out, run)
        return run

    def peak(self, confirmations: int = 5) -> dict[str, Any]:
        """Search the highest rate that meets the objectives.

        Raises:
            ClientBottleneckError: the client cannot send that fast.
        """
        found = self._find_peak(confirmations)
        run = {**description(self.plan, "peak", self.model), "peak": self._peak_report(found, confirmations)}
        if found.trials:
            run["figures"] = found.trials[-1].figures
        write_run(self.out, run)
        return run

    def sweep(self, peak: float | None, confirmations: int = 5) -> dict[str, Any]:
        """The curve of rates up to beyond the peak."""
        report: dict[str, Any] = {}
        if peak is None:
            found = self._find_peak(confirmations)
            report["peak"] = self._peak_report(found, confirmations)
            peak = found.rate
            if peak is None:
                raise ValueError(
                    "no rate meets the objectives: nothing to sweep; loosen --slo or give --peak"
                )
        points: list[dict[str, Any]] = []
        for rate in sweep_rates(peak):
            plan = self._at(rate, early_stop=False)
            measurement = self._measured(plan, f"{rate:.3g}/s")
            if measurement.interrupted:
                break
            points.append({"rate": rate, "figures": figures(plan, measurement)})
        curve = [
            (p["figures"]["rates"]["answered"], p["figures"]["times"]["latency"].get("mean", 0.0))
            for p in points
        ]
        report["sweep"] = {
            "points": points,
            "knee": knee(curve),
            "peak_rate": peak,
            "objective": ",".join(o.text for o in self.plan.objectives) or None,
        }
        run = {**description(self.plan, "sweep", self.model), **report}
        write_run(self.out, run)
        return run

    def alternate(self, other: Session, rounds: int, threshold: float) -> list[Comparison]:
        """Load this server and another in turns with the same requests, and compare them."""
        seconds = self.plan.phases.duration_seconds / rounds
        parts: tuple[list[Measurement], list[Measurement]] = ([], [])
        for turn in range(rounds):
            for side, session in enumerate((self, other)):
                phases = replace(session.plan.phases, duration_seconds=seconds)
                traffic = replace(session.plan.traffic, seed=session.plan.traffic.seed + turn)
                plan = replace(session.plan, phases=phases, traffic=traffic, early_stop=False)
                title = f"{'AB'[side]} {session.plan.target.endpoint}, turn {turn + 1} of {rounds}"
                parts[side].append(session._measured(plan, title))
        records = []
        for session, measurements in zip((self, other), parts, strict=True):
            joined = _joined(measurements, seconds)
            session._save(joined)
            records.append(joined.samples.records)
        return [*compare_records(records[0], records[1], threshold), compare_answered(records[0], records[1])]

    def _save(self, measurement: Measurement) -> None:
        run = {
            **description(self.plan, "run", self.model),
            "schedule_sha256": measurement.schedule.sha256,
            "figures": figures(self.plan, measurement),
            "answers": None,
        }
        write_requests(self.out, measurement)
        write_run(self.out, run)

    def _measured(self, plan: Plan, title: str) -> Measurement:
        with self.progress.watching(title) as watcher:
            return measure(plan, watcher)

    def _answers(self, measurement: Measurement) -> dict[str, Any] | None:
        if not self._check_answers or measurement.interrupted or not len(measurement.samples):
            return None
        plan = self.plan
        items = sorted(set(measurement.samples.records["item"].tolist()))
        try:
            golden = golden_answers(
                plan.target, plan.corpus, plan.options, items, self.model, _cache(), self.progress.asking
            )
        except KeyboardInterrupt:  # the run is over, and its figures are worth keeping
            self.progress.note("interrupted: the answers were not compared")
            return None
        return compare_answers(measurement.samples, golden, plan.corpus)

    def _at(self, rate: float, *, early_stop: bool, seed: int = 0) -> Plan:
        traffic = replace(self.plan.traffic, rate=rate, seed=self.plan.traffic.seed + seed)
        return replace(self.plan, traffic=traffic, early_stop=early_stop and self.plan.early_stop)

    def _find_peak(self, confirmations: int) -> Peak:
        """Search; where it is interrupted, what was tried until then."""
        trials: list[Trial] = []

        def try_rate(rate: float, stage: str) -> Trial:
            plan = self._at(rate, early_stop=True, seed=1 + len(trials))
            measurement = self._measured(plan, f"{stage} {rate:.3g}/s")
            if measurement.interrupted:
                raise KeyboardInterrupt
            found = figures(plan, measurement)
            checks = [check(o, measurement.samples.records, plan.confidence) for o in plan.objectives]
            verdict = overall(checks)
            met = verdict is Verdict.PASS or (
                verdict is Verdict.UNDECIDED and all(c.observed is Verdict.PASS for c in checks)
            )
            # Late sending makes a rate look missed as easily as met; requests that pile up until no more are
            # sent are the server's doing.
            if not found["self_check"]["valid"] and not found["self_check"]["dropped"]:
                raise ClientBottleneckError(
                    f"the client is the bottleneck at {rate:.4g}/s: "
                    + "; ".join(found["self_check"]["reasons"])
                )
            p97 = found["times"]["latency"].get("p97")
            shown = "-" if p97 is None else f"{1e3 * p97:.0f} ms"
            self.progress.note(
                f"{stage:8} {rate:8.2f}/s  {'met' if met else 'not met':8} p97 {shown}, "
                f"{found['requests']['sent']} requests, {verdict.value}"
            )
            trials.append(Trial(stage, rate, met, found))
            return trials[-1]

        try:
            return find_peak(try_rate, self.plan.traffic.rate, confirmations=confirmations)
        except KeyboardInterrupt:
            self.progress.note("interrupted: this is what was tried")
            return Peak(None, 0, tuple(trials))

    def _peak_report(self, found: Peak, confirmations: int) -> dict[str, Any]:
        def row(trial: Trial) -> dict[str, Any]:
            latency = trial.figures["times"]["latency"]
            return {
                "stage": trial.stage,
                "rate": trial.rate,
                "met": trial.met,
                "verdict": trial.figures["verdict"],
                "seconds": trial.figures["seconds"],
                "requests": trial.figures["requests"]["sent"],
                **{name: latency.get(name) for name in ("p50", "p97", "p99")},
            }

        confirming = [t for t in found.trials if t.stage == "confirm" and t.rate == found.rate]
        goodputs = [trial.figures["rates"]["goodput"] for trial in confirming]
        return {
            "rate": found.rate,
            "goodput": float(np.mean(goodputs)) if goodputs else None,
            "objectives": ",".join(objective.text for objective in self.plan.objectives),
            "confirmations": confirmations,
            "confirmed": found.confirmed,
            "trials": [row(trial) for trial in found.trials],
        }


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dragoman" / "golden"


def _joined(parts: list[Measurement], seconds: float) -> Measurement:
    """Turns as one measurement, one behind the other."""
    for turn, part in enumerate(parts):
        for name in ("scheduled", "sent", "first", "done"):
            part.samples.records[name] += turn * seconds
    collection = Collection()
    for part in parts:
        collection.add(part.samples)
    shifted = [
        (at + turn * seconds, gauges) for turn, part in enumerate(parts) for at, gauges in part.timeline
    ]
    return replace(
        parts[-1],
        schedule=Schedule(np.concatenate([part.schedule.entries for part in parts])),
        samples=collection.samples(),
        seconds=sum(part.seconds for part in parts),
        timeline=shifted,
        metrics_before=parts[0].metrics_before,
    )
