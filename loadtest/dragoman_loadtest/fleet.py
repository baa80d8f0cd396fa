"""The client processes: started, given their shares, listened to, ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

import numpy as np

from dragoman_loadtest.samples import Phase
from dragoman_loadtest.schedule import Schedule
from dragoman_loadtest.sender import Abandon, Begin, Report, Setup, Stop, client_process

__all__ = ["ClientError", "Fleet", "processes_for"]

# A forked process would share gRPC's threads and locks with its parent.
_CONTEXT = multiprocessing.get_context("spawn")
_START_SECONDS = 60.0
_REQUESTS_PER_SECOND = 500.0  # what one process takes easily
_END_SECONDS = 10.0
_MORTAL_USERS = 4
_MORTAL_REQUESTS = 200


class ClientError(RuntimeError):
    """A client process ended by itself: the run is void."""


def processes_for(rate: float) -> int:
    """Client processes that send `rate` requests per second without being the bottleneck."""
    return max(1, min(int(-(-rate // _REQUESTS_PER_SECOND)), len(os.sched_getaffinity(0)), 16))


@dataclass(slots=True)
class _Client:
    process: BaseProcess
    pipe: Connection

    @classmethod
    def started(cls, setup: Setup) -> _Client:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=client_process, args=(setup, theirs), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)


class Fleet:
    """Client processes that share one load. Use as a context manager.

    Args:
        setup: What they are to know; each gets a number of its own.
        processes: How many.
        killed: Further ones that are killed every second, and replaced; what they send is not reported.

    Raises:
        ConnectionError: the server does not answer them.
    """

    def __init__(self, setup: Setup, processes: int, killed: int = 0) -> None:
        self._setup = setup
        self._clients = [_Client.started(replace(setup, number=i)) for i in range(processes)]
        self._mortals = _Mortals(setup, killed)
        self.state: dict[int, Report] = {}
        """The latest report of every process."""

    def __len__(self) -> int:
        return len(self._clients)

    def connect(self) -> None:
        """Wait until every process has reached the server.

        Raises:
            ConnectionError: one has not.
        """
        end = time.monotonic() + _START_SECONDS
        while len(self.state) < len(self._clients):
            if not self.collect(0.1) and time.monotonic() > end:
                raise ConnectionError("the client processes did not start within a minute")

    def begin(
        self, phase: Phase, schedule: Schedule, start: float, *, users: int = 0, until: float = float("inf")
    ) -> None:
        """Send `schedule` from `start` on; what an earlier phase has not sent by then is given up."""
        count = len(self._clients)
        for i, client in enumerate(self._clients):
            numbers = np.arange(i, len(schedule), count)
            own_users = users // count + (i < users % count)
            if users and not own_users:
                continue
            self._send(client, Begin(phase, schedule.share(i, count), numbers, start, own_users, until))
        self._mortals.schedule = schedule

    def collect(self, timeout: float) -> list[Report]:
        """The reports that arrive within `timeout` seconds; returns with the first.

        Raises:
            ClientError: a process has died.
            ConnectionError: a process could not reach the server.
        """
        self._mortals.tick()
        return self._receive(self._clients, timeout)

    def _receive(self, clients: list[_Client], timeout: float) -> list[Report]:
        reports = []
        for pipe in wait([client.pipe for client in clients], timeout):
            assert isinstance(pipe, Connection)
            try:
                message = pipe.recv()
            except EOFError as error:
                raise ClientError("a client process ended by itself; its own message is above") from error
            if isinstance(message, ConnectionError):
                raise message
            self.state[message.process] = message
            reports.append(message)
        return reports

    @property
    def in_flight(self) -> int:
        """Requests that are sent and not answered."""
        return sum(report.in_flight for report in self.state.values())

    @property
    def unsent(self) -> int:
        """Requests whose time has not come."""
        return sum(report.unsent for report in self.state.values())

    @property
    def cpu_seconds(self) -> dict[int, float]:
        """Used so far, by process."""
        return {number: report.cpu_seconds for number, report in self.state.items()}

    def stop(self) -> None:
        """Send nothing more; what is in flight goes on."""
        self._mortals.end()
        self._send_all(Stop())

    def finish(self) -> list[Report]:
        """Give up what is in flight, and end; returns the last reports."""
        self._mortals.end()
        self._send_all(Abandon())
        reports: list[Report] = []
        end = time.monotonic() + _END_SECONDS
        while time.monotonic() < end:
            open_ones = [c for i, c in enumerate(self._clients) if not self.state[i].ended]
            if not open_ones:
                return reports
            reports += self._receive(open_ones, 0.1)
        raise ClientError("a client process does not answer any more")

    @property
    def killed(self) -> int:
        """Client processes killed so far, with requests in flight."""
        return self._mortals.killed

    def _send(self, client: _Client, message: Any) -> None:
        try:
            client.pipe.send(message)
        except OSError as error:
            raise ClientError("a client process ended by itself; its own message is above") from error

    def _send_all(self, message: Any) -> None:
        for client in self._clients:
            self._send(client, message)

    def close(self) -> None:
        """End whatever still runs."""
        self._mortals.end()
        _end(self._clients)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _end(clients: Iterable[_Client], with_signal: int = signal.SIGKILL) -> None:
    for client in clients:
        client.pipe.close()
        if client.process.exitcode is None and client.process.pid is not None:
            os.kill(client.process.pid, with_signal)
        client.process.join()


@dataclass(slots=True)
class _Mortals:
    """Clients that are killed in the middle of their requests, as a machine that loses its power is."""

    setup: Setup
    count: int
    schedule: Schedule | None = None
    killed: int = 0
    _clients: list[_Client] = field(default_factory=list)

    def tick(self) -> None:
        """Kill those whose requests are on their way, and replace them."""
        if self.schedule is None or not self.count:
            return
        doomed = [client for client in self._clients if _has_sent(client)]
        _end(doomed)
        self.killed += len(doomed)
        self._clients = [client for client in self._clients if client not in doomed]
        while len(self._clients) < self.count:
            self._clients.append(self._started(self.schedule))

    def _started(self, schedule: Schedule) -> _Client:
        client = _Client.started(replace(self.setup, number=255))
        few = schedule.entries[:_MORTAL_REQUESTS]  # so few that the pipe holds them: it is not yet read
        start = time.monotonic()
        client.pipe.send(Begin(Phase.MEASURED, few, np.arange(len(few)), start, users=_MORTAL_USERS))
        return client

    def end(self) -> None:
        """Kill, and do not replace."""
        self.count = 0
        _end(self._clients)
        self._clients = []


def _has_sent(client: _Client) -> bool:
    try:
        while client.pipe.poll():
            report = client.pipe.recv()
            if isinstance(report, Report) and report.in_flight:
                return True
    except EOFError:
        return True
    return False
