"""The settings of a load test: every default once, each field a flag of `dragoman loadtest`."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

from dragoman_loadtest.units import parse_seconds, parse_share

__all__ = ["Judgement", "Misbehaviour", "Mode", "Phases", "Target", "Traffic"]


def _is_here(endpoint: str) -> bool:
    """Whether an address is on this machine; a name other than localhost may be anywhere."""
    if endpoint.startswith(("localhost:", "unix:")):
        return True
    try:
        return ipaddress.ip_address(endpoint.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:
        return False


def _seconds(_: type, tokens: tuple[Token, ...]) -> float:
    return parse_seconds(tokens[0].value)


def _share(_: type, tokens: tuple[Token, ...]) -> float:
    return parse_share(tokens[0].value)


def _named_seconds(name: str) -> Any:
    return Parameter(name=f"--{name}", converter=_seconds)


def _named_share(name: str) -> Any:
    return Parameter(name=f"--{name}", converter=_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which server is loaded, and how it is reached.

    Raises:
        ValueError: the options do not fit each other; the message names the flag.
    """

    endpoint: str = "127.0.0.1:50051"
    """HOST:PORT of the server."""
    metrics: str | None = None
    """HOST:PORT of the server's Prometheus endpoint: occupancy, padding and queue come from there."""
    tls: bool = False
    """Connect with TLS."""
    tls_ca: Path | None = None
    """PEM file of the authority that signed the server's certificate, where it is not a public one."""
    token_file: Path | None = None
    """File with a token that every call carries as a bearer credential; needs TLS."""
    i_own_this_host: Annotated[bool, Parameter(negative="")] = False
    """Load a server on another machine than this one, which is yours to load."""

    def __post_init__(self) -> None:
        for endpoint in filter(None, (self.endpoint, self.metrics)):
            if not _is_here(endpoint) and not self.i_own_this_host:
                raise ValueError(
                    f"{endpoint} is not on this machine: add --i-own-this-host if it is yours to load"
                )
        if self.token_file is not None and not self.tls:
            raise ValueError("--token-file needs --tls: a token must not cross the wire in clear")
        if self.tls_ca is not None and not self.tls:
            raise ValueError("--tls-ca needs --tls")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What is sent, when.

    Raises:
        ValueError: a value is out of its range; the message names the flag.
    """

    rate: float = 10.0
    """Requests per second; the peak of a ramp."""
    arrivals: Literal["poisson", "constant", "burst", "ramp"] = "poisson"
    """When requests leave in the open loop: at random, evenly, in bursts, or ever faster up to the rate."""
    burst: int = 10
    """Requests of one burst."""
    trace: Path | None = None
    """CSV with a column `seconds` (and `line`, from 1, for the text) to replay instead of a rate."""
    concurrency: int | None = None
    """Closed loop instead: so many users, each of whom sends when their last request is answered. Hides how
    long a stalled server keeps users waiting."""
    draw: Literal["shuffled", "uniform"] = "shuffled"
    """Every text once before any comes again, or each drawn on its own."""
    stream: bool = False
    """Use TranslateStream: measures the time to the first token and between tokens."""
    timeout_seconds: Annotated[float, _named_seconds("timeout")] = 60.0
    """Deadline of every request."""
    max_requests: int = 1_000_000
    """Bound on the requests of a run."""
    processes: int = 0
    """Client processes; 0 for one per 500 requests/s, as far as there are CPUs."""
    seed: int = 1
    """Decides the schedule."""

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 100_000.0:
            raise ValueError(f"--rate must be above 0 and at most 100,000 per second, not {self.rate:g}")
        for flag in ("burst", "max_requests"):
            if getattr(self, flag) < 1:
                raise ValueError(f"--{flag.replace('_', '-')} must be at least 1, not {getattr(self, flag)}")
        if self.concurrency is not None and not 1 <= self.concurrency <= 10_000:
            raise ValueError(f"--concurrency must be between 1 and 10,000, not {self.concurrency}")
        if self.concurrency is not None and self.trace is not None:
            raise ValueError("--trace is an open loop, --concurrency a closed one: give one of the two")
        if not 0 <= self.processes <= 64:
            raise ValueError(f"--processes must be between 0 and 64, not {self.processes}")
        if self.timeout_seconds <= 0.0:
            raise ValueError(f"--timeout must be above 0, not {self.timeout_seconds:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Misbehaviour:
    """Clients as they are: impatient, slow, and gone.

    Raises:
        ValueError: a value is out of its range; the message names the flag.
    """

    cancel_share: Annotated[float, _named_share("cancel-rate")] = 0.0
    """Share of requests that are cancelled, at a random moment."""
    cancel_within_seconds: Annotated[float, _named_seconds("cancel-within")] = 0.5
    """The latest such moment after sending."""
    deadlines: str = ""
    """Deadlines and their weights instead of one timeout, such as 500ms:1,2s:3."""
    slow_share: Annotated[float, _named_share("slow-readers")] = 0.0
    """Share of requests that ask for a stream and pause between its messages."""
    slow_pause_seconds: Annotated[float, _named_seconds("slow-pause")] = 0.2
    """That pause."""
    killed_clients: Annotated[int, Parameter(name="--kill-clients")] = 0
    """Further client processes, each killed (SIGKILL) as soon as its 4 requests are sent, and replaced."""

    def __post_init__(self) -> None:
        if self.cancel_share + self.slow_share > 1.0:
            raise ValueError("--cancel-rate and --slow-readers must not exceed 100% together")
        if not 0 <= self.killed_clients <= 32:
            raise ValueError(f"--kill-clients must be between 0 and 32, not {self.killed_clients}")
        self.deadline_shares  # noqa: B018  # raises

    @property
    def deadline_shares(self) -> tuple[tuple[float, float], ...]:
        """Deadlines in seconds and their weights."""
        pairs = []
        for part in filter(None, self.deadlines.split(",")):
            deadline, _, weight = part.partition(":")
            try:
                pairs.append((parse_seconds(deadline), float(weight or 1.0)))
            except ValueError as error:
                raise ValueError(f"--deadlines: {part!r} does not read like 500ms:0.2") from error
        if not all(0.0 < seconds < math.inf and 0.0 < weight < math.inf for seconds, weight in pairs):
            raise ValueError("--deadlines: deadlines and weights must be numbers above 0")
        return tuple(pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Warm-up, measurement, drain.

    Raises:
        ValueError: a value is out of its range; the message names the flag.
    """

    duration_seconds: Annotated[float, _named_seconds("duration")] = 30.0
    """How long is measured."""
    warm_up_seconds: Annotated[float, _named_seconds("warm-up")] = 30.0
    """Longest warm-up: it ends as soon as three windows in a row agree. 0 for none."""
    drain_seconds: Annotated[float, _named_seconds("drain")] = 10.0
    """How long answers are waited for at the end; a request still open then counts with its age."""

    def __post_init__(self) -> None:
        if not 0.0 < self.duration_seconds <= 3600.0:
            raise ValueError(
                f"--duration must be above 0 and at most an hour, not {self.duration_seconds:g}s"
            )
        for flag, seconds in (("warm-up", self.warm_up_seconds), ("drain", self.drain_seconds)):
            if not 0.0 <= seconds <= 600.0:
                raise ValueError(f"--{flag} must be between 0 and 10 minutes, not {seconds:g}s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the run has to show.

    Raises:
        ValueError: a value is out of its range; the message names the flag.
    """

    slo: str = ""
    """Objectives, such as p97<250ms,ttft.p99<150ms,errors<1%. The exit code says whether they are met: 0 yes,
    1 no, 3 undecided, 4 the run is invalid."""
    confidence: float = 0.99
    """With which a verdict must be right."""
    early_stop: bool = True
    """End as soon as the objectives are decided."""
    check: bool = True
    """Compare every answer with the one that the unloaded server gives, asked one by one after the run."""
    reference: Path | None = None
    """Reference translations, line-aligned with the corpus: BLEU and chrF of the loaded answers."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1.0:
            raise ValueError(f"--confidence must be at least 0.5 and below 1, not {self.confidence}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One run, or a search over rates.

    Raises:
        ValueError: the options do not fit each other; the message names the flag.
    """

    find_peak: Annotated[bool, Parameter(negative="")] = False
    """Search the highest rate that meets --slo: double from --rate, bisect, confirm five times."""
    sweep: Annotated[bool, Parameter(negative="")] = False
    """Run rates up to 150 % of the peak, which is searched first unless --peak gives it."""
    peak: float | None = None
    """Requests per second that the sweep takes as the peak."""
    ab: str | None = None
    """HOST:PORT of a second server: both are loaded in turns with the same requests, and compared."""
    rounds: int = 4
    """Turns of each with --ab."""
    preset: Literal["mlperf-gnmt"] | None = None
    """mlperf-gnmt: the server scenario of MLPerf Inference v0.5 for GNMT: Poisson arrivals, texts drawn at
    random, 97th percentile within 250 ms, at least 60 s."""
    engine: Literal["dragoman", "loadgen"] = "dragoman"
    """loadgen: MLPerf's own load generator sends and judges instead; needs mlcommons-loadgen."""

    def __post_init__(self) -> None:
        if sum((self.find_peak, self.sweep, self.ab is not None)) > 1:
            raise ValueError("--find-peak, --sweep and --ab are different things: give one of them")
        if self.peak is not None and not (self.sweep and self.peak > 0.0):
            raise ValueError("--peak is a rate above 0 for --sweep")
        if not 1 <= self.rounds <= 100:
            raise ValueError(f"--rounds must be between 1 and 100, not {self.rounds}")
        if self.engine == "loadgen" and (self.sweep or self.ab):
            raise ValueError("--engine loadgen does single runs and --find-peak")
