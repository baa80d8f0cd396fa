"""Requests whose decode step failed: tried again in ever smaller groups, until the guilty one is alone.

Rows do not depend on their batch, so the innocent come out as they would have without the failure. With one
guilty request among n they are decoded some log2(n) times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dragoman_server.engine.messages import Request

__all__ = ["Quarantine", "Suspect"]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A request that was decoding when a step failed."""

    request: Request
    admitted: float
    """When it left the queue."""
    progress: int
    """Tokens that its caller was told already."""


class Quarantine:
    """Groups of suspects, each to be decoded with nobody else; belongs to one worker."""

    def __init__(self) -> None:
        self.is_open = False
        """Whether a group waits, or is being decoded."""
        self._groups: list[list[Suspect]] = []

    @property
    def requests(self) -> list[Request]:
        """Those that wait for their turn."""
        return [suspect.request for group in self._groups for suspect in group]

    def add(self, suspects: Sequence[Suspect]) -> None:
        """Take in the members of a group that has failed, two at least, as two groups."""
        middle = len(suspects) // 2
        self._groups += [list(suspects[middle:]), list(suspects[:middle])]
        self.is_open = True

    def drop(self, is_gone: Callable[[Request], bool]) -> list[Request]:
        """Take out those who are gone."""
        if not self._groups:
            return []
        gone = [request for request in self.requests if is_gone(request)]
        self._groups = [[one for one in group if one.request not in gone] for group in self._groups]
        return gone

    def next_group(self) -> list[Suspect]:
        """The next group, or nobody: then the quarantine is over."""
        while self._groups:
            if group := self._groups.pop():
                return group
        self.is_open = False
        return []
