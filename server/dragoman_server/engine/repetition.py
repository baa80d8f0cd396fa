"""Loops: translations that have degenerated into the same phrase again and again.

Seen in Holtzman et al. 2020 (arXiv:1904.09751, section 3); every further token is work for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dragoman_server.engine.runner import IntArray

__all__ = ["Repetition", "repeats"]

_PERIODS = np.arange(1, 9)
"""Tokens of a phrase."""
_TIMES = 4
"""How often a phrase stands at least where it is a loop."""


def repeats(tokens: Sequence[int], at_least: int) -> bool:
    """Whether a phrase of up to eight tokens stands there again and again, over `at_least` tokens or more."""
    for period in _PERIODS.tolist():
        run = 0
        for token, before in zip(tokens[period:], tokens, strict=False):
            run = run + 1 if token == before else 0
            if run + period >= max(at_least, _TIMES * period):
                return True
    return False


class Repetition:
    """Counts, for the hypothesis of every slot, how far back its last tokens repeat.

    Args:
        slots: How many there are.
        at_least: Tokens that a loop covers; 0 for no loop ever.
    """

    def __init__(self, slots: int, at_least: int) -> None:
        self.at_least = at_least
        self.runs = np.zeros((slots, len(_PERIODS)), np.int32)
        """`[slots, periods]`: last tokens of a hypothesis that equal those one period before them."""
        self._bounds = np.maximum(at_least, _TIMES * _PERIODS) - _PERIODS

    def append(
        self, slots: NDArray[np.intp], tokens: IntArray, histories: NDArray[np.int32], lengths: IntArray
    ) -> None:
        """Count the next token of some hypotheses.

        Args:
            slots: `[n]`, theirs.
            tokens: `[n]`, the next ones.
            histories: `[slots, positions]`, the tokens of all slots.
            lengths: `[n]`, how many of them each hypothesis has.
        """
        if not self.at_least:
            return
        positions = lengths[:, None] - _PERIODS  # [n, periods]
        before = histories[slots[:, None], np.maximum(positions, 0)]
        same = (before == tokens[:, None]) & (positions >= 0)
        self.runs[slots] = np.where(same, self.runs[slots] + 1, 0)

    def is_loop(self, slots: NDArray[np.intp]) -> NDArray[np.bool_]:
        """`[n]`: whether the hypotheses in `slots` have come to repeat themselves."""
        if not self.at_least:
            return np.zeros(len(slots), np.bool_)
        return np.asarray((self.runs[slots] >= self._bounds).any(axis=1))
