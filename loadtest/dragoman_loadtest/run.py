"""One measured run: warm up until it is steady, measure, drain."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman.options import TranslateOptions
from dragoman_loadtest.corpus import Corpus
from dragoman_loadtest.fleet import Fleet, processes_for
from dragoman_loadtest.measures import seconds_of, timed
from dragoman_loadtest.options import Misbehaviour, Phases, Target, Traffic
from dragoman_loadtest.samples import Code, Collection, Phase, Samples
from dragoman_loadtest.schedule import Schedule, closed_loop, read_trace, schedule
from dragoman_loadtest.sender import Report, Setup
from dragoman_loadtest.server_view import Metrics, MetricsReader
from dragoman_loadtest.slo import Objective, Verdict, check, overall
from dragoman_loadtest.steady import steady, window_seconds

__all__ = ["Measurement", "Moment", "Plan", "Watcher", "measure", "planned_schedule"]

_TICK_SECONDS = 0.2
_LEAD_SECONDS = 0.3  # between the decision to begin a phase and its beginning
_METRICS_SECONDS = 1.0
_UNDECIDED_SECONDS = 5.0
_WARM_UP_SEED = 1_000_003


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides a run."""

    target: Target
    traffic: Traffic
    options: TranslateOptions
    corpus: Corpus
    phases: Phases = field(default_factory=Phases)
    misbehaviour: Misbehaviour = field(default_factory=Misbehaviour)
    objectives: tuple[Objective, ...] = ()
    confidence: float = 0.99
    early_stop: bool = True
    """End as soon as the objectives are decided."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A run as it stands, for whoever watches."""

    phase: str
    """warm-up, measuring or draining."""
    elapsed: float
    """Seconds in this phase."""
    planned: float
    records: NDArray[Any]
    """Of this phase's requests, as far as they have ended; on the clock of `time.monotonic`."""
    in_flight: int
    metrics: Metrics
    rate: float


Watcher = Callable[[Moment], None]


@dataclass(slots=True)
class Measurement:
    """What a run has found; times in the records count from the beginning of the measurement."""

    schedule: Schedule
    samples: Samples
    seconds: float
    """Measured: up to when requests were sent."""
    drain_seconds: float
    warm_up_seconds: float
    was_steady: bool | None
    """Whether the warm-up ended because three windows agreed; None without a warm-up."""
    stopped_early: bool
    interrupted: bool
    processes: int
    client_cpu_share: float
    """CPU that the busiest client process used while measuring, of one core."""
    killed_clients: int
    metrics_before: Metrics
    metrics_after: Metrics
    timeline: list[tuple[float, Metrics]]
    """Seconds since the measurement began, and the server's gauges then."""
    metrics_error: str


def planned_schedule(plan: Plan) -> Schedule:
    """What the measurement sends."""
    traffic, texts = plan.traffic, len(plan.corpus.texts)
    if traffic.concurrency is not None:
        return closed_loop(traffic, plan.misbehaviour, texts, traffic.seed)
    if traffic.trace is not None:
        return read_trace(traffic.trace, traffic, plan.misbehaviour, texts, traffic.seed)
    return schedule(traffic, plan.misbehaviour, texts, plan.phases.duration_seconds, traffic.seed)


def measure(plan: Plan, watcher: Watcher | None = None) -> Measurement:
    """Load the target as planned; Ctrl-C ends the run early and keeps what was measured.

    Raises:
        ConnectionError: the server does not answer.
        ClientError: a client process ended by itself.
    """
    planned = planned_schedule(plan)
    traffic = plan.traffic
    setup = Setup(
        0,
        plan.target,
        plan.corpus.texts,
        plan.options,
        traffic.stream,
        plan.misbehaviour.slow_pause_seconds,
    )
    processes = traffic.processes or processes_for(0.0 if traffic.concurrency else _peak_rate(plan, planned))
    if traffic.concurrency:
        processes = min(processes, traffic.concurrency)
    killed = plan.misbehaviour.killed_clients
    with Fleet(setup, processes, killed) as fleet, _interrupts_put_off() as raise_due:
        fleet.connect()
        return _Run(plan, planned, fleet, watcher, raise_due).measurement()


@contextlib.contextmanager
def _interrupts_put_off() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits until it is asked for: in the middle of a message from a client it would break the pipe.

    Yields:
        What raises `KeyboardInterrupt` if one is due.
    """
    due = 0

    def note(*_: object) -> None:
        nonlocal due
        due += 1

    def raise_due() -> None:
        nonlocal due
        if due:
            due = 0
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        yield raise_due
        return
    previous = signal.signal(signal.SIGINT, note)
    try:
        yield raise_due
    finally:
        signal.signal(signal.SIGINT, previous)


def _peak_rate(plan: Plan, planned: Schedule) -> float:
    if plan.traffic.trace is None:
        return plan.traffic.rate
    at = planned.entries["at"]
    return float(len(at) / max(at[-1], 1.0))


class _Run:
    """The phases of `measure`."""

    def __init__(
        self,
        plan: Plan,
        planned: Schedule,
        fleet: Fleet,
        watcher: Watcher | None,
        raise_due: Callable[[], None],
    ) -> None:
        self._plan, self._planned, self._fleet, self._watcher = plan, planned, fleet, watcher
        self._raise_due = raise_due
        self._reader = MetricsReader(plan.target.metrics)
        self._collected = {phase: Collection() for phase in Phase}
        self._timeline: list[tuple[float, Metrics]] = []
        self._metrics: Metrics = {}
        self._metrics_due = 0.0
        self._users = plan.traffic.concurrency or 0
        self._rate = plan.traffic.rate if not self._users else float("nan")
        self._duration = plan.phases.duration_seconds
        if plan.traffic.trace is not None:
            self._duration = min(self._duration, float(planned.entries["at"][-1]) + 0.001)

    def measurement(self) -> Measurement:
        interrupted, was_steady = False, None
        start = end = time.monotonic()
        warm_up_began, cpu = start, dict[int, float]()
        before: Metrics = {}
        try:
            was_steady = self._warm_up()
            before = self._reader.read()
            start = time.monotonic() + _LEAD_SECONDS
            cpu = self._fleet.cpu_seconds
            until = start + self._duration
            self._fleet.begin(Phase.MEASURED, self._planned, start, users=self._users, until=until)
            end = until
            if self._until_decided(start, until):
                end = time.monotonic()
            self._fleet.stop()
        except KeyboardInterrupt:
            interrupted, end = True, min(end, time.monotonic())
            self._fleet.stop()
        busiest = max((used - cpu.get(i, 0.0) for i, used in self._fleet.cpu_seconds.items()), default=0.0)
        share = busiest / max(time.monotonic() - start, 1e-3) if cpu else 0.0
        after = self._reader.read()
        interrupted |= self._drain(start)
        for report in self._fleet.finish():
            self._keep(report)
        samples = self._collected[Phase.MEASURED].samples()
        _count_from(samples, start)
        return Measurement(
            schedule=self._planned,
            samples=samples,
            seconds=max(end - start, 0.0),
            drain_seconds=time.monotonic() - end,
            warm_up_seconds=start - warm_up_began,
            was_steady=was_steady,
            stopped_early=not interrupted and end < start + self._duration,
            interrupted=interrupted,
            processes=len(self._fleet),
            client_cpu_share=share,
            killed_clients=self._fleet.killed,
            metrics_before=before,
            metrics_after=after,
            timeline=[(at - start, metrics) for at, metrics in self._timeline],
            metrics_error=self._reader.error,
        )

    def _warm_up(self) -> bool | None:
        """Load as in the measurement until three windows agree; False where they never did."""
        longest = self._plan.phases.warm_up_seconds
        if not longest:
            return None
        plan, seed = self._plan, self._plan.traffic.seed + _WARM_UP_SEED
        texts = len(plan.corpus.texts)
        start = time.monotonic() + _LEAD_SECONDS
        if self._users:
            warm = closed_loop(plan.traffic, plan.misbehaviour, texts, seed)
        else:
            # A ramp never is steady: it is warmed up for at its top.
            arrivals = "poisson" if plan.traffic.arrivals == "ramp" else plan.traffic.arrivals
            traffic = replace(plan.traffic, rate=_peak_rate(plan, self._planned), arrivals=arrivals)
            warm = schedule(traffic, plan.misbehaviour, texts, longest + 1.0, seed)
        self._fleet.begin(Phase.WARM_UP, warm, start, users=self._users)
        while (now := time.monotonic()) < start + longest:
            self._tick("warm-up", start, longest, Phase.WARM_UP)
            records = self._collected[Phase.WARM_UP].records
            records = records[timed(records)]
            seconds = seconds_of(records, "latency")
            rate = self._rate if not self._users else max(len(records) / max(now - start, 0.1), 0.1)
            if steady(records["done"], seconds, now, window_seconds(rate)):
                return True
        return False

    def _until_decided(self, start: float, until: float) -> bool:
        """Watch until the end; True where the objectives were decided before.

        Requests of one moment share its queue, and are not as many independent witnesses: a burst of a few
        hundred of them would decide. So the first seconds, and half of a short run, decide nothing.
        """
        plan, earliest = self._plan, start + max(_UNDECIDED_SECONDS, 0.5 * min(self._duration, 60.0))
        while time.monotonic() < until:
            self._tick("measuring", start, self._duration, Phase.MEASURED)
            if plan.objectives and plan.early_stop and time.monotonic() > earliest:
                checks = [
                    check(objective, self._settled(objective, start), plan.confidence, final=False)
                    for objective in plan.objectives
                ]
                if overall(checks) is not Verdict.UNDECIDED:
                    return True
        return False

    def _drain(self, start: float) -> bool:
        """Wait for answers; True where the user did not want to."""
        end = time.monotonic() + self._plan.phases.drain_seconds
        try:
            while time.monotonic() < end:
                self._tick("draining", end - self._plan.phases.drain_seconds, 0.0, Phase.MEASURED)
                if not self._fleet.in_flight and not self._fleet.unsent:
                    return False
        except KeyboardInterrupt:
            return True
        return False

    def _tick(self, name: str, start: float, planned: float, phase: Phase) -> None:
        for report in self._fleet.collect(_TICK_SECONDS):
            self._keep(report)
        self._raise_due()
        now = time.monotonic()
        if now >= self._metrics_due and self._reader.address is not None:
            self._metrics, self._metrics_due = self._reader.read(), now + _METRICS_SECONDS
            if phase is Phase.MEASURED:
                self._timeline.append((now, self._metrics))
        if self._watcher is not None:
            records, elapsed = self._collected[phase].records, max(now - start, 0.0)
            self._watcher(
                Moment(name, elapsed, planned, records, self._fleet.in_flight, self._metrics, self._rate)
            )

    def _keep(self, report: Report) -> None:
        for phase, samples in report.samples.items():
            self._collected[phase].add(samples)

    def _settled(self, objective: Objective, start: float) -> NDArray[Any]:
        """Requests of which it is known by now whether they meet the objective.

        Judged by its answers alone, a run that falls ever further behind would look fine. So where the
        objective bounds the time since the scheduled moment, all requests count that were due that long ago,
        and those that are still not answered count as open.
        """
        records = self._collected[Phase.MEASURED].records
        if self._users or objective.metric in ("errors", "tpot"):
            return records
        horizon = time.monotonic() - objective.bound
        planned = self._planned.entries
        due = int(np.searchsorted(planned["at"], horizon - start))
        known = records[records["scheduled"] <= horizon]
        missing = np.setdiff1d(np.arange(due), known["request"])
        late = np.zeros(len(missing), records.dtype)
        late["request"], late["fate"], late["code"] = missing, planned["fate"][missing], Code.OPEN
        return np.concatenate([known, late])


def _count_from(samples: Samples, start: float) -> None:
    for name in ("scheduled", "sent", "first", "done"):
        samples.records[name] -= start
