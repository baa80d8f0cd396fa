"""One client process: takes its share of a schedule, sends it on time, reports what came back.

The coordinator (`fleet.py`) speaks to it through a pipe, in the messages below.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import selectors
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman.options import TranslateOptions
from dragoman_loadtest.options import Target
from dragoman_loadtest.samples import RECORD, Code, Phase, Samples
from dragoman_loadtest.schedule import Fate
from dragoman_loadtest.wire import Outcome, Wire, serialised

__all__ = ["Abandon", "Begin", "Report", "Sender", "Setup", "Stop", "client_process"]

_REPORT_SECONDS = 0.1
_AWAKE_SECONDS = 0.0004  # before a request is due: a sleeper is woken so late, more or less
_MAX_IN_FLIGHT = 20_000
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Begin:
    """Send these requests; what is left of an earlier phase's is given up as soon as this one starts."""

    phase: Phase
    entries: NDArray[Any]
    """This process's share, of `schedule.ENTRY`."""
    numbers: NDArray[np.int64]
    """Their places in the whole schedule."""
    start: float
    """When the phase begins, on the clock of `time.monotonic`."""
    users: int = 0
    """Closed loop of so many users; 0 for an open one."""
    until: float = float("inf")
    """When a closed loop stops sending."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Send nothing more."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Report what is still open as it is, and end."""


@dataclass(slots=True)
class Report:
    """What happened since the last report."""

    process: int
    samples: dict[Phase, Samples]
    in_flight: int
    unsent: int
    """Requests whose time has not come yet."""
    cpu_seconds: float
    """That this process has used so far."""
    ended: bool = False


@dataclass(slots=True)
class _Unreported:
    """What a phase's requests have come to since the last report."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def samples(self) -> Samples:
        gaps = np.array(self.gaps, np.float32)
        return Samples(np.array(self.rows, RECORD), self.answers, gaps, dict(self.errors))


@dataclass(frozen=True, slots=True)
class Setup:
    """What a client process needs to know before it begins."""

    number: int
    target: Target
    texts: tuple[str, ...]
    options: TranslateOptions
    stream: bool
    slow_pause: float


def client_process(setup: Setup, pipe: Connection) -> None:
    """Run a client process until it is told to end, or the coordinator is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's to handle
    with asyncio.Runner(loop_factory=_event_loop) as runner:
        runner.run(Sender(setup, pipe).run())


def _event_loop() -> asyncio.AbstractEventLoop:
    """select(2) takes microseconds; epoll, asyncio's default, rounds every wait up to a millisecond."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def _until(moment: float) -> None:
    """Sleep, and be awake in time where that costs little: not between requests in close succession."""
    wait = moment - time.monotonic()
    if wait <= 5.0 * _AWAKE_SECONDS:
        if wait > 0.0:
            await asyncio.sleep(wait)
        return
    await asyncio.sleep(wait - _AWAKE_SECONDS)
    while time.monotonic() < moment:
        await asyncio.sleep(0)


class Sender:
    """Sends requests at their times; see `client_process`."""

    def __init__(self, setup: Setup, pipe: Connection) -> None:
        self._setup = setup
        self._pipe = pipe
        self._unary, self._streaming = serialised(setup.texts, setup.options)
        self._in_flight: dict[asyncio.Task[None], tuple[Any, ...]] = {}
        self._sending: list[asyncio.Task[None]] = []
        self._unsent = 0
        self._unreported: defaultdict[Phase, _Unreported] = defaultdict(_Unreported)
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Connect, say so, and do what the coordinator says."""
        self._wire = Wire(self._setup.target)
        try:
            try:
                await self._wire.models(_CONNECT_SECONDS)
            except ConnectionError as error:
                self._pipe.send(error)
                return
            gc.collect()
            gc.freeze()  # what is there now stays: no use in looking at it during the run
            asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._read)
            self._send_report()
            while not self._ended.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), _REPORT_SECONDS)
                self._send_report()
        except (BrokenPipeError, EOFError):
            pass  # the coordinator is gone
        finally:
            await self._wire.close()

    def _read(self) -> None:
        try:
            message = self._pipe.recv()
        except EOFError:
            message = Abandon()
        match message:
            case Begin():
                earlier, self._sending = self._sending, []
                if earlier:
                    asyncio.get_running_loop().call_later(
                        max(0.0, message.start - time.monotonic()), self._cancel_all, earlier
                    )
                begin = self._closed(message) if message.users else [self._open(message)]
                self._sending = [asyncio.ensure_future(work) for work in begin]
            case Stop():
                self._cancel_all(self._sending)
            case Abandon():
                self._cancel_all(self._sending)
                self._abandon()
                self._ended.set()
                asyncio.get_running_loop().remove_reader(self._pipe.fileno())

    @staticmethod
    def _cancel_all(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()

    async def _open(self, begin: Begin) -> None:
        """Start every request at its time, whatever became of the others."""
        loop = asyncio.get_running_loop()
        self._unsent = len(begin.entries)
        try:
            for number, entry in zip(begin.numbers.tolist(), begin.entries.tolist(), strict=True):
                scheduled = begin.start + entry[0]
                await _until(scheduled)
                self._unsent -= 1
                plan = (begin.phase, number, *entry[1:3], self._setup.number, scheduled)
                if len(self._in_flight) >= _MAX_IN_FLIGHT:
                    nan = float("nan")
                    self._add(plan, Outcome(Code.DROPPED, nan, nan))
                    continue
                task = loop.create_task(self._request(plan, entry))
                self._in_flight[task] = plan
                task.add_done_callback(self._in_flight.pop)
        finally:
            self._unsent = 0

    def _closed(self, begin: Begin) -> list[Any]:
        """Users who send one request after the other."""
        turns = iter(range(10**9))
        entries, numbers = begin.entries.tolist(), begin.numbers.tolist()

        async def user() -> None:
            await asyncio.sleep(max(0.0, begin.start - time.monotonic()))
            while time.monotonic() < begin.until:
                turn = next(turns)
                entry, number = entries[turn % len(entries)], numbers[turn % len(entries)]
                now = time.monotonic()
                plan = (begin.phase, number, *entry[1:3], self._setup.number, now)
                # A task of its own: when sending stops, what is in flight still ends by itself.
                task = asyncio.ensure_future(self._request(plan, entry))
                self._in_flight[task] = plan
                task.add_done_callback(self._in_flight.pop)
                await asyncio.wait([task])

        return [user() for _ in range(begin.users)]

    async def _request(self, plan: tuple[Any, ...], entry: tuple[Any, ...]) -> None:
        _, item, fate, patience, timeout = entry
        limit = patience if fate == Fate.CANCEL else None
        if fate == Fate.READ_SLOWLY:
            outcome = await self._wire.stream(
                self._streaming[item], timeout, limit, pause=self._setup.slow_pause
            )
        elif self._setup.stream:
            outcome = await self._wire.stream(self._streaming[item], timeout, limit)
        else:
            outcome = await self._wire.unary(self._unary[item], timeout, limit)
        if not self._ended.is_set():  # else it has been reported as open
            self._add(plan, outcome)

    def _add(self, plan: tuple[Any, ...], outcome: Outcome) -> None:
        phase, number, item, fate, process, scheduled = plan
        found = outcome.translation
        measured: tuple[Any, ...] = (0, 0, 0, False, *[float("nan")] * 4)
        answer = None
        if found is not None:
            timing, best = found.timing, found.hypotheses[0]
            answer = best.text
            measured = (
                found.source_tokens,
                best.output_tokens,
                found.segments,
                found.truncated,
                timing.queue_seconds,
                timing.encode_seconds,
                timing.decode_seconds,
                timing.total_seconds,
            )
        times = (scheduled, outcome.sent, outcome.first, outcome.done)
        unreported = self._unreported[phase]
        unreported.rows.append((number, item, fate, process, outcome.code, *times, *measured))
        unreported.answers.append(answer)
        if fate == Fate.PLAIN:
            unreported.gaps.extend(outcome.gaps)
        if outcome.error is not None:
            unreported.errors[outcome.error] += 1

    def _abandon(self) -> None:
        now = time.monotonic()
        for task, plan in list(self._in_flight.items()):
            if not task.done():
                self._add(plan, Outcome(Code.OPEN, plan[-1], now))

    def _send_report(self) -> None:
        samples = {phase: unreported.samples() for phase, unreported in self._unreported.items()}
        self._unreported.clear()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._pipe.send(
            Report(
                self._setup.number,
                samples,
                len(self._in_flight),
                self._unsent,
                usage.ru_utime + usage.ru_stime,
                self._ended.is_set(),
            )
        )
