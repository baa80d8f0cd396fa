"""The slab against arrays of full size from the start."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.engine.runner import Extent, SlotCopy
from dragoman_server.engine.slab import Slab
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
            slab.grow(Extent(1 + max(action.source, action.target), action.stop, 1))
            slab.copy([action])
            full.copy(action)
        elif isinstance(action[0], int):
            row, length = action
            slab.grow(Extent(row + 1, length, 1))
            write_caches(slab, full, row, length, number)
        else:
            targets, length = action
            slab.grow(Extent(1 + max(targets), 1, length))
            store_memory(slab, full, targets, length, number)
    extent = slab.extent
    kept = full.cache[: extent.rows, : extent.positions].swapaxes(1, 2)
    np.testing.assert_array_equal(slab.arrays["cache"], kept)
    np.testing.assert_array_equal(slab.arrays["flat"], full.flat[: extent.rows, : extent.positions])
    np.testing.assert_array_equal(
        slab.arrays["memory"], full.memory[: extent.rows, : extent.source_positions]
    )
    np.testing.assert_array_equal(slab.source_lengths, full.lengths)


extents = st.builds(Extent, rows.map(lambda row: row + 1), st.integers(1, 40), st.integers(1, 50))


@given(extents)
def test_what_grows_is_there_and_no_more_than_twice_or_the_first_step(needed: Extent) -> None:
    slab = Slab(STATE, LIMITS)
    slab.grow(needed)
    assert slab.extent.covers(needed)
    assert LIMITS.covers(slab.extent)
    assert slab.extent.positions <= max(16, 2 * needed.positions)


@pytest.mark.parametrize("needed", [Extent(21, 1, 1), Extent(1, 41, 1), Extent(1, 1, 51)])
def test_more_than_the_limits_is_refused(needed: Extent) -> None:
    slab = Slab(STATE, LIMITS)
    assert not slab.fits(needed)
    for make_room in (slab.grow, slab.reserve):
        with pytest.raises(ValueError, match=r"Extent\(.* exceeds|does not fit"):
            make_room(needed)


def taken(slab: Slab) -> int:
    """Bytes of all arrays."""
    return sum(array.nbytes for array in slab.arrays.values())


@given(st.lists(extents, min_size=1, max_size=20), st.integers(0, 60_000))
def test_reserved_room_keeps_its_content_and_the_budget(several: list[Extent], budget: int) -> None:
    replaced: list[int] = []
    slab = Slab(STATE, LIMITS, budget, before_resize=lambda: replaced.append(1))
    previous, written = Extent(0, 0, 0), 0
    for number, used in enumerate(several, start=1):
        if not slab.fits(used):
            with pytest.raises(ValueError, match="does not fit"):
                slab.reserve(used)
            continue
        before, resizes = dict(slab.arrays), len(replaced)
        slab.reserve(used)
        assert slab.extent.covers(used)
        assert taken(slab) == slab.bytes(slab.extent) <= budget
        assert (len(replaced) > resizes) == any(slab.arrays[name] is not before[name] for name in before)
        kept = Extent(*map(min, zip(astuple(previous), astuple(used), strict=True)))
        assert (slab.arrays["cache"][: kept.rows, :, : kept.positions] == written).all()
        assert (slab.arrays["memory"][: kept.rows, : kept.source_positions] == written).all()
        slab.arrays["cache"][: used.rows, :, : used.positions] = number
        slab.arrays["memory"][: used.rows, : used.source_positions] = number
        previous, written = used, number


@given(extents, extents)
def test_what_fits_still_fits_when_something_smaller_does_not_need_it(one: Extent, other: Extent) -> None:
    slab = Slab(STATE, LIMITS, max_bytes=20_000)
    smaller = Extent(*map(min, zip(astuple(one), astuple(other), strict=True)))
    assert not slab.fits(one) or slab.fits(smaller)


def test_room_that_is_not_used_for_long_is_given_back() -> None:
    slab = Slab(STATE, LIMITS)
    slab.reserve(LIMITS)
    full, small = taken(slab), Extent(4, 10, 10)
    for _ in range(32):
        slab.reserve(small)
    assert taken(slab) == full
    slab.reserve(Extent(20, 10, 10))  # in use again: the count begins anew
    for _ in range(32):
        slab.reserve(small)
    assert taken(slab) == full
    slab.reserve(small)
    assert slab.extent == Extent(4, 16, 16)
