"""What the engine asks of whatever executes the network: verbs over slots.

A slot is one row of the decoder's state: one hypothesis. Slots are numbered from 0; a step runs rows
`0 .. n - 1`, so the engine keeps the slots it uses at the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Extent", "FloatArray", "IntArray", "Runner", "RunnerLimits", "SlotCopy"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """What one runner can hold."""

    max_rows: int
    """Slots."""
    max_source_tokens: int
    max_target_tokens: int
    """Positions of the decoder, the start token included in the count of inputs."""
    vocabulary_size: int
    """Of the target side."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of the decoder's state is meant: a box, since every row has room for the longest."""

    rows: int
    """Slots, counted from 0."""
    positions: int
    """Of the decoder's history."""
    source_positions: int

    def covers(self, other: Extent) -> bool:
        """Whether `other` lies in this extent."""
        return (
            self.rows >= other.rows
            and self.positions >= other.positions
            and self.source_positions >= other.source_positions
        )

    def joined_by(self, rows: int, positions: int, source_positions: int) -> Extent:
        """This extent with that many rows more, of that length."""
        return Extent(
            self.rows + rows, max(self.positions, positions), max(self.source_positions, source_positions)
        )


@dataclass(frozen=True, slots=True)
class SlotCopy:
    """Copies decoder history of positions `start .. stop - 1` from one slot to another."""

    source: int
    target: int
    start: int
    stop: int
    with_memory: bool = False
    """Also copy what the encoder left for the slot (its cross-attention keys and values, its length)."""


class Runner(Protocol):
    """Executes the encoder and decode step of one model on one device, on one thread at a time."""

    @property
    def limits(self) -> RunnerLimits:
        """Bounds of rows, source and target lengths."""

    def fits(self, extent: Extent) -> bool:
        """Whether there is memory for `extent`; if so there is for every smaller one."""

    def reserve(self, extent: Extent) -> None:
        """Make room for `extent`, which holds all that is in use; what lies beyond may be lost.

        The other verbs make the room that they need, too, but never at the cost of what is there.
        """

    def encode(self, sources: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> None:
        """Encode a batch; leave the memory of `sources[i]` in every slot of `slots[i]`, history empty."""

    def step(self, tokens: IntArray, lengths: IntArray, top_k: int) -> tuple[FloatArray, IntArray]:
        """Feed one token to each of rows `0 .. n - 1`.

        Args:
            tokens: `[n]`, the token fed to each row.
            lengths: `[n]`, the number of tokens fed to that row before: the position of this one.
            top_k: How many continuations to return.

        Returns:
            Log-probabilities, natural logarithm, `[n, top_k]`, descending, and their token ids `[n, top_k]`.
        """

    def copy(self, copies: Sequence[SlotCopy]) -> None:
        """Carry out copies; no slot is both a source and a target among them."""
