"""The decoder's state of all slots, as arrays whose axis 0 is the slot.

The manifest says which tensors there are; nothing here knows what they mean. Arrays begin small, grow as
needed up to a budget of memory, and shrink again after a while: what a long sentence leaves are gaps between
the rows of short ones, which cost time as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_server.engine.runner import Extent, SlotCopy
from dragoman_server.state_tensor import StateTensor

__all__ = ["Slab"]

_STEP = 16
"""The step in which rows and positions grow."""
_ROWS = 4
"""The step in which rows grow where memory is scarce."""
_GROWTH = 1.25
"""How much more room to make at least. More leaves gaps between the rows, and reading them costs more."""
_WASTE = 4
"""Times the memory in use at which arrays are too large, if they stay so for `_PATIENCE` reservations."""
_PATIENCE = 32


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

    def resize(self, extent: Extent) -> None:
        """Make arrays of that extent, keeping what is stored within it."""
        length = _length(self.tensors[0], extent)
        shape = (len(self.tensors), *self.tensors[0].shape(extent.rows, length))
        # Zeros, not garbage: rows that hold no hypothesis are computed too, and their result dropped.
        array = np.zeros(shape, self.array.dtype)
        if self.array.size:
            common = tuple(slice(min(sizes)) for sizes in zip(shape, self.array.shape, strict=True))
            array[common] = self.array[common]
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
        max_bytes: The most its arrays may take; while they grow, half of the old ones stand beside them.
        before_resize: Called before the arrays are replaced by others.
    """

    def __init__(
        self,
        state: Sequence[StateTensor],
        limits: Extent,
        max_bytes: float = math.inf,
        before_resize: Callable[[], object] = lambda: None,
    ) -> None:
        self.limits = limits
        self.extent = Extent(0, 0, 0)
        self.arrays: dict[str, NDArray[Any]] = {}
        """Every tensor's `[rows, ...]`."""
        self.source_lengths = np.ones(limits.rows, np.int32)
        self._max_bytes = max_bytes
        self._before_resize = before_resize
        self._wasteful = 0
        """Reservations in a row that found the arrays too large."""
        self._position_bytes = sum(_position_bytes(tensor) for tensor in state if tensor.kind == "kv_cache")
        self._source_bytes = sum(_position_bytes(tensor) for tensor in state if tensor.kind == "memory")
        self._blocks: list[_Block] = []
        for tensor in state:
            block = next((block for block in self._blocks if block.suits(tensor)), None)
            if block is None:
                self._blocks.append(_Block(tensor))
            else:
                block.tensors.append(tensor)
        self._resize(self.extent)

    def bytes(self, extent: Extent) -> int:
        """Memory that arrays of `extent` take."""
        positions = extent.positions * self._position_bytes + extent.source_positions * self._source_bytes
        return extent.rows * positions

    def fits(self, extent: Extent) -> bool:
        """Whether `extent` can be reserved, whatever is there now."""
        return self.limits.covers(extent) and self.bytes(self._least(extent)) <= self._max_bytes

    def grow(self, needed: Extent) -> None:
        """Make room for `needed`, keeping all that is stored.

        Raises:
            ValueError: `needed` exceeds the limits or, beside what is stored, the budget.
        """
        if self.extent.covers(needed):
            return
        if not self.limits.covers(needed):
            raise ValueError(f"{needed} exceeds what the model can hold, {self.limits}")
        roomy = self._roomy(needed)
        if roomy is None:
            raise ValueError(f"{needed} beside {self.extent} exceeds the budget of {self._max_bytes} bytes")
        self._resize(roomy)

    def reserve(self, used: Extent) -> None:
        """Make room for `used`, all that is in use; what lies beyond may be given back.

        Raises:
            ValueError: `used` does not fit.
        """
        if not self.extent.covers(used):
            if not self.fits(used):
                raise ValueError(
                    f"{used} does not fit: {self.limits} and {self._max_bytes} bytes are the bounds"
                )
            self._resize(self._roomy(used) or self._least(used))
        elif self.bytes(self.extent) <= _WASTE * self.bytes(self._least(used)):
            self._wasteful = 0
        elif self._wasteful < _PATIENCE:
            self._wasteful += 1
        else:
            self._resize(self._least(used))

    def _least(self, needed: Extent) -> Extent:
        """What is made for `needed` at least: in steps, lest every step of the decoder need new arrays."""
        return Extent(
            min(_rounded(needed.rows, _ROWS), self.limits.rows),
            min(_rounded(needed.positions, _STEP), self.limits.positions),
            min(_rounded(needed.source_positions, _STEP), self.limits.source_positions),
        )

    def _roomy(self, needed: Extent) -> Extent | None:
        """What is there and enough for `needed`, with more room in what grows; less where memory is short."""
        present, limits = self.extent, self.limits
        for growth in (_GROWTH, 1.0):
            extent = Extent(
                _room(present.rows, needed.rows, limits.rows, growth),
                _room(present.positions, needed.positions, limits.positions, growth),
                _room(present.source_positions, needed.source_positions, limits.source_positions, growth),
            )
            if self.bytes(extent) <= self._max_bytes:
                return extent
        return None

    def _resize(self, extent: Extent) -> None:
        self._before_resize()
        self._wasteful = 0
        self.extent = extent
        for block in self._blocks:
            block.resize(extent)
            self.arrays |= {tensor.name: block.array[i] for i, tensor in enumerate(block.tensors)}

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


def _room(present: int, needed: int, limit: int, growth: float) -> int:
    """What is there if that is enough; else what is needed, or `growth` times what there is."""
    if needed <= present:
        return present
    return min(_rounded(max(needed, present * growth), _STEP), limit)


def _rounded(count: float, step: int) -> int:
    return math.ceil(count / step) * step


def _length(tensor: StateTensor, extent: Extent) -> int:
    """Positions along the growing axis of `tensor`."""
    return extent.positions if tensor.kind == "kv_cache" else extent.source_positions


def _position_bytes(tensor: StateTensor) -> int:
    """Of one position of one row."""
    return math.prod(tensor.sizes.values()) * np.dtype(tensor.type).itemsize
