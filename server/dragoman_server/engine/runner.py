"""What the engine asks of whatever executes the network: three verbs over slots.

A slot is one row of the decoder's state: one hypothesis. Slots are numbered from 0; a step runs rows
`0 .. n - 1`, so the engine keeps the slots it uses at the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatArray", "IntArray", "Runner", "RunnerLimits", "SlotCopy"]

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
