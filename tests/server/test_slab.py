"""The slab against arrays of full size from the start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.engine.runner import SlotCopy
from dragoman_server.engine.slab import Extent, Slab
from dragoman_server.state_tensor import StateTensor

LIMITS = Extent(rows=20, positions=40, source_positions=50)
STATE = (
    StateTensor("cache", "kv_cache", ("row", "head", "position", "head_dim"), {"head": 2, "head_dim": 3}),
    StateTensor("flat", "kv_cache", ("row", "position"), {}),
    StateTensor("memory", "memory", ("row", "source_position", "width"), {"width": 2}),
)


class FullSlab:
    """The same state, position axes first, written as plainly as possible."""

    def __init__(self) -> None:
        self.cache = np.zeros((LIMITS.rows, LIMITS.positions, 2, 3), np.float32)
        self.flat = np.zeros((LIMITS.rows, LIMITS.positions), np.float32)
        self.memory = np.zeros((LIMITS.rows, LIMITS.source_positions, 2), np.float32)
        self.lengths = np.ones(LIMITS.rows, np.int32)

    def copy(self, copy: SlotCopy) -> None:
        for array in (self.cache, self.flat):
            for position in range(copy.start, copy.stop):
                array[copy.target, position] = array[copy.source, position]
        if copy.with_memory:
            length = self.lengths[copy.target] = self.lengths[copy.source]
            self.memory[copy.target, :length] = self.memory[copy.source, :length]


def write_caches(slab: Slab, full: FullSlab, row: int, length: int, value: float) -> None:
    slab.arrays["cache"][row, :, :length] = full.cache[row, :length] = value
    slab.arrays["flat"][row, :length] = full.flat[row, :length] = value + 1


def store_memory(slab: Slab, full: FullSlab, slots: list[int], length: int, value: float) -> None:
    memory = np.full((1, length + 2, 2), value, np.float32)  # padded, as in a batch with a longer source
    slab.store({"memory": memory}, [length], [slots])
    full.memory[slots, :length] = value
    full.lengths[slots] = length


rows = st.integers(0, LIMITS.rows - 1)
copies = st.builds(
    lambda ends, span, with_memory: SlotCopy(*ends, *sorted(span), with_memory=with_memory),
    st.lists(rows, min_size=2, max_size=2, unique=True),
    st.tuples(st.integers(0, LIMITS.positions), st.integers(0, LIMITS.positions)),
    st.booleans(),
)
writes = st.tuples(rows, st.integers(1, LIMITS.positions))
stores = st.tuples(
    st.lists(rows, min_size=1, max_size=3, unique=True), st.integers(1, LIMITS.source_positions)
)


@given(actions=st.lists(copies | writes | stores, max_size=30))
def test_any_history_leaves_what_full_arrays_would_hold(actions: list[Any]) -> None:
    slab, full = Slab(STATE, LIMITS), FullSlab()
    for number, action in enumerate(actions, start=1):
        if isinstance(action, SlotCopy):
            slab.reserve(Extent(1 + max(action.source, action.target), action.stop, 1))
            slab.copy([action])
            full.copy(action)
        elif isinstance(action[0], int):
            row, length = action
            slab.reserve(Extent(row + 1, length, 1))
            write_caches(slab, full, row, length, number)
        else:
            targets, length = action
            slab.reserve(Extent(1 + max(targets), 1, length))
            store_memory(slab, full, targets, length, number)
    extent = slab.extent
    kept = full.cache[: extent.rows, : extent.positions].swapaxes(1, 2)
    np.testing.assert_array_equal(slab.arrays["cache"], kept)
    np.testing.assert_array_equal(slab.arrays["flat"], full.flat[: extent.rows, : extent.positions])
    np.testing.assert_array_equal(
        slab.arrays["memory"], full.memory[: extent.rows, : extent.source_positions]
    )
    np.testing.assert_array_equal(slab.source_lengths, full.lengths)


@given(needed=st.builds(Extent, rows.map(lambda row: row + 1), st.integers(1, 40), st.integers(1, 50)))
def test_what_is_reserved_is_there_and_no_more_than_twice_or_the_first_size(needed: Extent) -> None:
    slab = Slab(STATE, LIMITS)
    slab.reserve(needed)
    assert slab.extent.covers(needed)
    assert LIMITS.covers(slab.extent)
    assert slab.extent.positions <= max(16, 2 * needed.positions)
    assert not slab.reserve(needed)


@pytest.mark.parametrize("needed", [Extent(21, 1, 1), Extent(1, 41, 1), Extent(1, 1, 51)])
def test_more_than_the_limits_is_refused(needed: Extent) -> None:
    with pytest.raises(ValueError, match="exceeds what the model can hold"):
        Slab(STATE, LIMITS).reserve(needed)
