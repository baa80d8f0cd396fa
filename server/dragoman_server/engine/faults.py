"""Faults on purpose: a runner whose verbs sleep, raise, or answer NaN when a test says so.

`DRAGOMAN_FAULTS` names them for a server process, separated by commas, each as VERB:ACTION[@WHEN]:

- VERB: `encode`, `step` or `copy`;
- ACTION: `raise`, `nan` (of `step`), `exit` (ends the worker's thread), `sleep=SECONDS`, or `leak=BYTES`
  (keeps so much memory for ever, for every row that is meant);
- WHEN: `5`, the worker's fifth call alone, warm-up counted; `5-9`, the fifth to the ninth; `5-`, the fifth
  and all later ones; `token=37`, calls with a row whose source has that token; by default every call.

`step:raise@token=37,encode:sleep=0.05` makes every step fail that a source with token 37 has part in, and
every encoder run slow; `encode:leak=2048` makes a server that loses 2 kB with every sentence and hypothesis,
by which a test of memory is tested.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dragoman_server.engine.runner import Extent, FloatArray, IntArray, Runner, RunnerLimits, SlotCopy

__all__ = ["ENVIRONMENT", "Fault", "FaultyRunner", "with_faults"]

_log = logging.getLogger(__name__)

ENVIRONMENT = "DRAGOMAN_FAULTS"
_PATTERN = re.compile(
    r"(?P<verb>encode|step|copy):(?P<action>raise|nan|exit|sleep=(?P<seconds>\d+(\.\d+)?)|leak=(?P<leak>\d+))"
    r"(@(token=(?P<token>\d+)|(?P<call>\d+)(?P<later>-(?P<last>\d+)?)?))?"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong in which calls of which verb."""

    verb: str
    action: str
    seconds: float = 0.0
    leak: int = 0
    """Bytes."""
    token: int | None = None
    """Of the sources that are meant; `None`: whatever the sources."""
    first: int = 1
    last: float = math.inf

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read VERB:ACTION[@WHEN].

        Raises:
            ValueError: it is written otherwise.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"{ENVIRONMENT}: {text!r} is no VERB:ACTION[@WHEN], such as step:raise@5")
        first = int(match["call"] or 1)
        last = int(match["last"]) if match["last"] else math.inf
        if last < first:
            raise ValueError(f"{ENVIRONMENT}: {text!r} ends before it begins")
        return cls(
            verb=match["verb"],
            action=match["action"].partition("=")[0],
            seconds=float(match["seconds"] or 0.0),
            leak=int(match["leak"] or 0),
            token=int(match["token"]) if match["token"] else None,
            first=first,
            last=first if match["call"] and not match["later"] else last,
        )


class FaultyRunner:
    """A runner, but for its faults; see `Runner` for the verbs."""

    def __init__(self, runner: Runner, faults: Sequence[Fault]) -> None:
        self._runner = runner
        self._faults = faults
        self._calls = dict.fromkeys(("encode", "step", "copy"), 0)
        self._sources: dict[int, Sequence[int]] = {}
        """By slot."""
        self._leaked: list[bytes] = []

    @property
    def limits(self) -> RunnerLimits:
        """Those of the runner."""
        return self._runner.limits

    def fits(self, extent: Extent) -> bool:
        """Whether it fits the runner."""
        return self._runner.fits(extent)

    def reserve(self, extent: Extent) -> None:
        """Make room in the runner."""
        self._runner.reserve(extent)

    def encode(self, sources: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> None:
        """Encode, after the faults of `encode`."""
        self._sources |= {slot: source for source, held in zip(sources, slots, strict=True) for slot in held}
        self._strike("encode", [slot for held in slots for slot in held])
        self._runner.encode(sources, slots)

    def step(self, tokens: IntArray, lengths: IntArray, top_k: int) -> tuple[FloatArray, IntArray]:
        """Step, after the faults of `step`."""
        broken = self._strike("step", range(len(tokens)))
        log_probs, token_ids = self._runner.step(tokens, lengths, top_k)
        log_probs[broken] = np.nan
        return log_probs, token_ids

    def copy(self, copies: Sequence[SlotCopy]) -> None:
        """Copy, after the faults of `copy`."""
        self._strike("copy", [copy.source for copy in copies])
        self._sources |= {copy.target: self._sources[copy.source] for copy in copies if copy.with_memory}
        self._runner.copy(copies)

    def _strike(self, verb: str, slots: Sequence[int]) -> list[int]:
        """Do what is to happen in this call; returns the rows that are to be NaN."""
        self._calls[verb] += 1
        broken: list[int] = []
        for fault in self._faults:
            if fault.verb != verb or not fault.first <= self._calls[verb] <= fault.last:
                continue
            meant = [slot for slot in slots if fault.token in (None, *self._sources.get(slot, ()))]
            if not meant:
                continue
            match fault.action:
                case "sleep":
                    time.sleep(fault.seconds)
                case "leak":
                    # Written to, or the memory would be promised only.
                    self._leaked += [b"\xff" * fault.leak for _ in meant]
                case "nan":
                    broken += meant
                case "exit":
                    raise SystemExit  # which no handler of errors takes for one
                case _:
                    raise RuntimeError(f"a fault on purpose, in {verb}")
        return broken


def with_faults(runner: Runner) -> Runner:
    """`runner`, or, where the environment asks for faults, one that has them, and the log says so.

    Raises:
        ValueError: the environment does not say how.
    """
    asked = os.environ.get(ENVIRONMENT)
    if not asked:
        return runner
    _log.warning("faults on purpose, as %s asks: %s", ENVIRONMENT, asked)
    return FaultyRunner(runner, [Fault.parse(fault) for fault in asked.split(",")])
