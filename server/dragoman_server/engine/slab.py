"""The decoder's state of all slots, as arrays whose axis 0 is the slot.

The manifest says which tensors there are; nothing here knows what they mean. Arrays begin small and grow as
needed, so that a server that sees short sentences keeps its caches small and near each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_server.engine.runner import SlotCopy
from dragoman_server.state_tensor import StateTensor

__all__ = ["Extent", "Slab"]

_FIRST = 16
"""Rows and positions to begin with, and the step in which they grow."""
_GROWTH = 1.25
"""How much more room to make at least. More leaves gaps between the rows, and reading them costs more."""


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


class _Block:
    """Tensors of one shape and type in one array `[tensors, rows, ...]`: parts of all are copied at once."""

    def __init__(self, first: StateTensor) -> None:
        self.tensors = [first]
        self.kind = first.kind
        self.array: NDArray[Any] = np.empty(0, first.type)
        # Axes between the row and the growing one.
        self._between = [slice(None)] * (first.axes.index(first.growing_axis) - 1)

    def suits(self, tensor: StateTensor) -> bool:
        """Whether `tensor` differs from these by its name alone."""
        return replace(tensor, name=self.tensors[0].name) == self.tensors[0]

    def grow(self, extent: Extent) -> None:
        """Make room, keeping what is stored."""
        shape = self.tensors[0].shape(extent.rows, extent.length(self.tensors[0]))
        # Zeros, not garbage: rows that hold no hypothesis are computed too, and their result dropped.
        array = np.zeros((len(self.tensors), *shape), self.array.dtype)
        if self.array.size:
            array[tuple(slice(size) for size in self.array.shape)] = self.array
        self.array = array

    def part(self, row: int, start: int, stop: int) -> tuple[int | slice, ...]:
        """Index of positions `start .. stop - 1` of one row, in one of the tensors."""
        return (row, *self._between, slice(start, stop))

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Copy positions `start .. stop - 1` of all tensors from one row to another."""
        every = slice(None)
        self.array[every, *self.part(target, start, stop)] = self.array[
            every, *self.part(source, start, stop)
        ]


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
        """Every tensor's `[rows, ...]`."""
        self.source_lengths = np.ones(limits.rows, np.int32)
        self._blocks: list[_Block] = []
        for tensor in state:
            block = next((block for block in self._blocks if block.suits(tensor)), None)
            if block is None:
                self._blocks.append(_Block(tensor))
            else:
                block.tensors.append(tensor)
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
        self.extent = Extent(
            _room(self.extent.rows, needed.rows, self.limits.rows),
            _room(self.extent.positions, needed.positions, self.limits.positions),
            _room(self.extent.source_positions, needed.source_positions, self.limits.source_positions),
        )
        for block in self._blocks:
            block.grow(self.extent)
            self.arrays |= {tensor.name: block.array[i] for i, tensor in enumerate(block.tensors)}
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
        for block in (block for block in self._blocks if block.kind == "memory"):
            values = [memories[tensor.name] for tensor in block.tensors]
            for source, (length, (first, *others)) in enumerate(zip(lengths, slots, strict=True)):
                given, stored = block.part(source, 0, length), block.part(first, 0, length)
                for array, value in zip(block.array, values, strict=True):
                    array[stored] = value[given]
                for slot in others:
                    block.copy(first, slot, 0, length)
        for length, targets in zip(lengths, slots, strict=True):
            self.source_lengths[list(targets)] = length

    def copy(self, copies: Sequence[SlotCopy]) -> None:
        """Carry out `copies`; no slot is both a source and a target among them."""
        for copy in copies:
            for block in self._blocks:
                if block.kind == "kv_cache":
                    block.copy(copy.source, copy.target, copy.start, copy.stop)
                elif copy.with_memory:
                    block.copy(copy.source, copy.target, 0, int(self.source_lengths[copy.source]))
            if copy.with_memory:
                self.source_lengths[copy.target] = self.source_lengths[copy.source]


def _room(present: int, needed: int, limit: int) -> int:
    """What is there if that is enough; else what is needed, or a quarter more than there is."""
    if needed <= present:
        return present
    return min(math.ceil(max(needed, present * _GROWTH) / _FIRST) * _FIRST, limit)
