"""Which slots of a runner are taken."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

__all__ = ["SlotPool"]


class SlotPool:
    """The slots `0 .. size - 1`; not thread-safe."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._used: set[int] = set()
        self._has_gaps = False

    @property
    def in_use(self) -> int:
        """Slots taken."""
        return len(self._used)

    @property
    def span(self) -> int:
        """Slots up to the last one taken, gaps included."""
        return 1 + max(self._used, default=-1)

    def take(self, count: int) -> tuple[int, ...]:
        """Take the lowest free slots, so that new rows fill the gaps between the old ones.

        Args:
            count: At most those that are not taken.
        """
        slots = tuple(islice((slot for slot in range(self.size) if slot not in self._used), count))
        self._used.update(slots)  # the lowest: where there was no gap, there is none
        return slots

    def release(self, slots: Iterable[int]) -> None:
        """Give slots back."""
        self._used.difference_update(slots)
        self._has_gaps = True

    def compact(self) -> dict[int, int]:
        """Move the taken slots to `0 .. in_use - 1`.

        Returns:
            Old to new number of the slots that move: the fewest that can. Old ones all lie at or above
            `in_use`, new ones all below it.
        """
        rows = len(self._used)
        if not self._has_gaps:
            return {}
        self._has_gaps = False
        holes = (slot for slot in range(rows) if slot not in self._used)
        moves = dict(zip(sorted(slot for slot in self._used if slot >= rows), holes, strict=True))
        self._used = set(range(rows))
        return moves
