"""The decoder's state of all slots, as arrays whose axis 0 is the slot.

The manifest says which tensors there are; nothing here knows what they mean. Arrays begin small and grow by
doubling, so that a server that sees short sentences keeps its caches small and near each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_server.engine.runner import SlotCopy
from dragoman_server.state_tensor import StateTensor

__all__ = ["Extent", "Slab"]

_FIRST = 16
"""Rows and positions to begin with."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much a slab holds."""

    rows: int
    positions: int
    """Along the growing axis of a `kv_cache`."""
    source_positions: int
    """Along the growing axis of a `memory`."""

    def covers(self, other: Extent) -> bool:
        """Whether `other` fits in this extent."""
        return (
            self.rows >= other.rows
            and self.positions >= other.positions
            and self.source_positions >= other.source_positions
        )

    def length(self, tensor: StateTensor) -> int:
        """Positions along the growing axis of `tensor`."""
        return self.positions if tensor.kind == "kv_cache" else self.source_positions


class Slab:
    """Arrays for the state tensors, together with each slot's source length.

    Args:
        state: What the decoder keeps.
        limits: The most this slab may grow to.
    """

    def __init__(self, state: Sequence[StateTensor], limits: Extent) -> None:
        self.limits = limits
        self.extent = Extent(0, 0, 0)
        self.arrays: dict[str, NDArray[Any]] = {}
        self.source_lengths = np.ones(limits.rows, np.int32)
        self._state = tuple(state)
        first = (min(_FIRST, limit) for limit in (limits.rows, limits.positions, limits.source_positions))
        self.reserve(Extent(*first))

    def reserve(self, needed: Extent) -> bool:
        """Make room for `needed`, keeping what is stored; tells whether the arrays are new ones.

        Raises:
            ValueError: `needed` exceeds the limits.
        """
        if self.extent.covers(needed):
            return False
        if not self.limits.covers(needed):
            raise ValueError(f"{needed} exceeds what the model can hold, {self.limits}")
        grown = Extent(
            _room(self.extent.rows, needed.rows, self.limits.rows),
            _room(self.extent.positions, needed.positions, self.limits.positions),
            _room(self.extent.source_positions, needed.source_positions, self.limits.source_positions),
        )
        for tensor in self._state:
            # Zeros, not garbage: rows that hold no hypothesis are computed too, and their result dropped.
            array = np.zeros(tensor.shape(grown.rows, grown.length(tensor)), tensor.type)
            if (old := self.arrays.get(tensor.name)) is not None:
                array[tuple(slice(size) for size in old.shape)] = old
            self.arrays[tensor.name] = array
        self.extent = grown
        return True

    def store(
        self, memories: Mapping[str, NDArray[Any]], lengths: Sequence[int], slots: Sequence[Sequence[int]]
    ) -> None:
        """Leave what the encoder made of source `i`, of `lengths[i]` tokens, in every slot of `slots[i]`.

        Args:
            memories: For every `memory` tensor, its value for all sources, source on axis 0.
            lengths: Of the sources.
            slots: Of the sources; within the extent.
        """
        for tensor in self._state:
            if tensor.kind != "memory":
                continue
            array, memory = self.arrays[tensor.name], memories[tensor.name]
            for source, (length, targets) in enumerate(zip(lengths, slots, strict=True)):
                for slot in targets:
                    array[_part(tensor, slot, 0, length)] = memory[_part(tensor, source, 0, length)]
        for length, targets in zip(lengths, slots, strict=True):
            self.source_lengths[list(targets)] = length

    def copy(self, copies: Sequence[SlotCopy]) -> None:
        """Carry out `copies`; no slot is both a source and a target among them."""
        for tensor in self._state:
            array = self.arrays[tensor.name]
            for copy in copies:
                start, stop = self._copied(tensor, copy)
                array[_part(tensor, copy.target, start, stop)] = array[
                    _part(tensor, copy.source, start, stop)
                ]
        for copy in copies:
            if copy.with_memory:
                self.source_lengths[copy.target] = self.source_lengths[copy.source]

    def _copied(self, tensor: StateTensor, copy: SlotCopy) -> tuple[int, int]:
        """The positions of `tensor` that `copy` is about."""
        if tensor.kind == "kv_cache":
            return copy.start, copy.stop
        return 0, int(self.source_lengths[copy.source]) if copy.with_memory else 0


def _room(present: int, needed: int, limit: int) -> int:
    """The next power of two, within the limit; never less than what there is."""
    return max(present, min(1 << (needed - 1).bit_length(), limit))


def _part(tensor: StateTensor, row: int, start: int, stop: int) -> tuple[int | slice, ...]:
    """Index of positions `start .. stop - 1` of one row of `tensor`."""
    axes = tensor.axes[1:]
    return row, *(slice(start, stop) if axis == tensor.growing_axis else slice(None) for axis in axes)
