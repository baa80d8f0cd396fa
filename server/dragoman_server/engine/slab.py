"""The decoder's state of all slots, as arrays whose axis 0 is the slot.

The manifest says which tensors there are; nothing here knows what they mean. Arrays begin small and grow as
needed, so that a server that sees short sentences keeps its caches small and near each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class _Layout(NamedTuple):
    """What tensors have in common whose parts stand at the same index, which is then worked out once."""

    kind: str
    before: int
    """Axes between the row and the growing one."""

    @classmethod
    def of(cls, tensor: StateTensor) -> _Layout:
        return cls(tensor.kind, tensor.axes.index(tensor.growing_axis) - 1)

    def part(self, row: int, start: int, stop: int) -> tuple[int | slice, ...]:
        """Index of positions `start .. stop - 1` of one row."""
        return (row, *[slice(None)] * self.before, slice(start, stop))


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
        self._layouts: dict[_Layout, list[str]] = {}
        for tensor in self._state:
            self._layouts.setdefault(_Layout.of(tensor), []).append(tensor.name)
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
        for layout, names in self._layouts.items():
            if layout.kind != "memory":
                continue
            pairs = [(self.arrays[name], memories[name]) for name in names]
            for source, (length, targets) in enumerate(zip(lengths, slots, strict=True)):
                part = layout.part(source, 0, length)
                for slot in targets:
                    stored = layout.part(slot, 0, length)
                    for array, memory in pairs:
                        array[stored] = memory[part]
        for length, targets in zip(lengths, slots, strict=True):
            self.source_lengths[list(targets)] = length

    def copy(self, copies: Sequence[SlotCopy]) -> None:
        """Carry out `copies`; no slot is both a source and a target among them."""
        for layout, names in self._layouts.items():
            arrays = [self.arrays[name] for name in names]
            for copy in copies:
                start, stop = self._copied(layout, copy)
                if start == stop:
                    continue
                target, source = layout.part(copy.target, start, stop), layout.part(copy.source, start, stop)
                for array in arrays:
                    array[target] = array[source]
        for copy in copies:
            if copy.with_memory:
                self.source_lengths[copy.target] = self.source_lengths[copy.source]

    def _copied(self, layout: _Layout, copy: SlotCopy) -> tuple[int, int]:
        """The positions of tensors of this layout that `copy` is about."""
        if layout.kind == "kv_cache":
            return copy.start, copy.stop
        return 0, int(self.source_lengths[copy.source]) if copy.with_memory else 0


def _room(present: int, needed: int, limit: int) -> int:
    """What is there if that is enough; else what is needed, or a quarter more than there is."""
    if needed <= present:
        return present
    return min(math.ceil(max(needed, present * _GROWTH) / _FIRST) * _FIRST, limit)
