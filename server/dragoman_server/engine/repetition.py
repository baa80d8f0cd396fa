"""Loops: translations that have degenerated into the same phrase again and again.

Seen in Holtzman et al. 2020 (arXiv:1904.09751, section 3); every further token is work for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ends_in_loop", "repeats"]

_PERIODS = range(1, 9)
"""Tokens of a phrase."""
_TIMES = 4
"""How often a phrase stands at least where it is a loop."""


def repeats(tokens: Sequence[int], at_least: int) -> bool:
    """Whether a phrase of up to eight tokens stands there again and again, over `at_least` tokens or more."""
    for period in _PERIODS:
        run = 0
        for token, before in zip(tokens[period:], tokens, strict=False):
            run = run + 1 if token == before else 0
            if run + period >= _span(period, at_least):
                return True
    return False


def ends_in_loop(tokens: NDArray[np.int32], at_least: int) -> bool:
    """Whether the last of `tokens`, `[n]`, are such a repetition."""
    if len(tokens) < _span(_PERIODS[0], at_least):
        return False
    tail = tokens[-_span(_PERIODS[-1], at_least) :].tolist()
    for period in _PERIODS:
        span = _span(period, at_least)
        if span > len(tail):
            return False
        if tail[-1] == tail[-1 - period] and tail[period - span :] == tail[-span:-period]:
            return True
    return False


def _span(period: int, at_least: int) -> int:
    """Tokens that a loop of that period covers at least."""
    return max(at_least, _TIMES * period)
