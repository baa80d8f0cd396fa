"""What is sent when: a schedule is made from a seed before the run, and knows nothing of the server.

Open loop: requests leave at their times whether or not earlier ones have been answered, as users do; a
server that stalls does not slow the load that is to measure the stall (coordinated omission).
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_loadtest.options import Misbehaviour, Traffic

__all__ = ["ENTRY", "Fate", "Schedule", "closed_loop", "read_trace", "schedule"]


_MOST_DRAWN = 20_000_000


class Fate(IntEnum):
    """What the client means to do to a request."""

    PLAIN = 0
    CANCEL = 1
    """Cancel it a while after it was sent."""
    READ_SLOWLY = 2
    """Ask for a stream and pause between its messages."""


ENTRY = np.dtype(
    [
        ("at", np.float64),  # seconds since the phase began
        ("item", np.int32),  # index of the text
        ("fate", np.uint8),
        ("patience", np.float32),  # seconds until a request with the fate CANCEL is cancelled
        ("timeout", np.float32),  # seconds of its deadline
    ]
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Requests in the order of their times."""

    entries: NDArray[Any]
    """Of `ENTRY`."""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def sha256(self) -> str:
        """Two runs with the same value send the same requests at the same times."""
        return hashlib.sha256(self.entries.tobytes()).hexdigest()

    def share(self, part: int, parts: int) -> NDArray[Any]:
        """Every `parts`-th request, beginning with the `part`-th."""
        return self.entries[part::parts]


def schedule(traffic: Traffic, misbehaviour: Misbehaviour, texts: int, seconds: float, seed: int) -> Schedule:
    """Arrivals of `traffic` over `seconds`, each with a text and a fate.

    Args:
        traffic: Rate and arrival process.
        misbehaviour: Shares of requests that are not simply waited for.
        texts: How many texts there are to draw from.
        seconds: Length of the phase.
        seed: Decides everything.

    Raises:
        ValueError: there would be tens of millions of arrivals.
    """
    generator = np.random.default_rng(seed)
    times = _arrivals(traffic, seconds, generator)[: traffic.max_requests]
    return _furnished(times, traffic, misbehaviour, texts, generator)


def read_trace(file: Path, traffic: Traffic, misbehaviour: Misbehaviour, texts: int, seed: int) -> Schedule:
    """A recorded trace: CSV with a column `seconds`, and `line` (from 1) where the text matters.

    Raises:
        ValueError: the file cannot be read, or a value in it is none.
    """
    times, items = [], []
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = csv.DictReader(stream)
            for row in rows:
                number = rows.line_num
                try:
                    times.append(float(row["seconds"]))
                    line = int(row["line"]) if row.get("line") else None
                    items.append(-1 if line is None else line - 1)
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(
                        f"{file}:{number}: needs a column `seconds` of numbers, and may have one `line`"
                    ) from error
                if not 0.0 <= times[-1] < float("inf") or (line is not None and not 1 <= line <= texts):
                    raise ValueError(f"{file}:{number}: a negative time, or a line that the corpus lacks")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: cannot be read as a trace ({error})") from error
    if not times:
        raise ValueError(f"{file}: no request in it")
    order = np.argsort(np.array(times), kind="stable")[: traffic.max_requests]
    generator = np.random.default_rng(seed)
    made = _furnished(np.array(times)[order] - min(times), traffic, misbehaviour, texts, generator)
    given = np.array(items, np.int32)[order]
    made.entries["item"] = np.where(given >= 0, given, made.entries["item"])
    return made


def closed_loop(traffic: Traffic, misbehaviour: Misbehaviour, texts: int, seed: int) -> Schedule:
    """Requests for users who each send one as soon as their last is answered: times are not planned."""
    times = np.zeros(min(traffic.max_requests, 200_000))  # repeated if the server is faster than that
    return _furnished(times, traffic, misbehaviour, texts, np.random.default_rng(seed))


def _arrivals(traffic: Traffic, seconds: float, generator: np.random.Generator) -> NDArray[np.float64]:
    rate = traffic.rate
    if rate * seconds > _MOST_DRAWN:
        raise ValueError(f"--rate {rate:g} for {seconds:g} s is beyond reason: lower --rate or --duration")
    if traffic.arrivals == "constant":
        return np.arange(int(rate * seconds + 0.5)) / rate
    if traffic.arrivals == "poisson":
        return _poisson(rate, seconds, generator)
    if traffic.arrivals == "burst":  # Poisson bursts, each of requests at one moment
        return np.repeat(_poisson(rate / traffic.burst, seconds, generator), traffic.burst)
    # ramp: Poisson whose rate grows evenly from 0; unit-rate arrivals mapped through the inverse of the
    # cumulative rate rate * t^2 / (2 * seconds)
    unit = _poisson(1.0, rate * seconds / 2.0, generator)
    ramped: NDArray[np.float64] = np.sqrt(2.0 * seconds * unit / rate)
    return ramped


def _poisson(rate: float, seconds: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Given their number, the arrivals of a Poisson process are uniform."""
    return np.sort(generator.uniform(0.0, seconds, generator.poisson(rate * seconds)))


def _furnished(
    times: NDArray[np.float64],
    traffic: Traffic,
    misbehaviour: Misbehaviour,
    texts: int,
    generator: np.random.Generator,
) -> Schedule:
    count = len(times)
    entries = np.zeros(count, ENTRY)
    entries["at"] = times
    if traffic.draw == "uniform":
        entries["item"] = generator.integers(0, texts, count)
    else:  # all texts once, then all once more in another order
        passes = max(1, -(-count // texts))
        orders = [generator.permutation(texts) for _ in range(passes)]
        entries["item"] = np.concatenate(orders)[:count]
    lot = generator.random(count)
    slow = misbehaviour.cancel_share + misbehaviour.slow_share
    entries["fate"] = np.where(
        lot < misbehaviour.cancel_share, Fate.CANCEL, np.where(lot < slow, Fate.READ_SLOWLY, Fate.PLAIN)
    )
    entries["patience"] = generator.uniform(0.0, misbehaviour.cancel_within_seconds, count)
    choices = misbehaviour.deadline_shares
    if choices:
        seconds, weights = zip(*choices, strict=True)
        entries["timeout"] = generator.choice(seconds, count, p=np.array(weights) / sum(weights))
    else:
        entries["timeout"] = traffic.timeout_seconds
    return Schedule(entries)
