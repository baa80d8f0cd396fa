"""How long a request will wait and take, from how long those of late did."""

from __future__ import annotations

__all__ = ["Estimate"]

_SMOOTHING = 0.1
_OVERHEAD_TOKENS = 8
"""What a sentence takes beside the time of its tokens, in tokens."""


class Estimate:
    """Exponentially smoothed paces; time is an argument of what is told, and nothing is known at first.

    Args:
        pace: Seconds that each waiting request adds to the wait of the next, before any was measured.
    """

    def __init__(self, pace: float) -> None:
        self.pace = pace
        """Seconds that each waiting request adds to the wait of the next."""
        self._per_token: float | None = None
        """Seconds from admission to the end, for each source token."""

    def admitted(self, waited: float, place: int) -> None:
        """A request was admitted that had come to that place, 1 for the first, so long ago."""
        self.pace += _SMOOTHING * (waited / place - self.pace)

    def finished(self, source_tokens: int, seconds: float) -> None:
        """A request of that length was translated in that time from its admission."""
        per_token = seconds / (source_tokens + _OVERHEAD_TOKENS)
        if self._per_token is None:
            self._per_token = per_token
        self._per_token += _SMOOTHING * (per_token - self._per_token)

    def wait(self, ahead: int) -> float:
        """Seconds until a request is admitted that has so many ahead of it; 0 while nothing is known."""
        return 0.0 if self._per_token is None else ahead * self.pace

    def service(self, source_tokens: int) -> float:
        """Seconds from its admission to its end; 0 while nothing is known."""
        return (self._per_token or 0.0) * (source_tokens + _OVERHEAD_TOKENS)
