"""The order in which requests of several clients are served.

Start-time fair queueing (Goyal, Vin and Cheng 1996, "Start-time fair queueing"): each request is tagged with
the virtual time at which its client, had it an equal share to itself, would begin it. The lowest tag is next,
so that a client with a thousand requests waiting does not hold up one with a single request. Those of one
client stay in order, and with one client this is first in, first out.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from dragoman_server.engine.messages import Request

__all__ = ["WaitingLine"]

_OVERHEAD_TOKENS = 8
"""What a request costs beside its tokens, in tokens."""
_MIN_STALE = 64


@dataclass(slots=True)
class _Client:
    """What one client has waiting: oldest first, each with its place when it came."""

    waiting: OrderedDict[Request, int] = field(default_factory=OrderedDict)
    finish: float = 0.0
    """The virtual time at which its share of the work is done with all of them."""


class WaitingLine:
    """Waiting requests; not thread-safe."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}
        # Who leaves out of turn stays here until met, or until there are too many such.
        self._order: list[tuple[float, int, Request]] = []
        self._sequence = itertools.count()
        self._virtual_time = 0.0
        self._count = 0
        self.slots = 0
        """Those that all of them together will take."""

    def __len__(self) -> int:
        return self._count

    def __contains__(self, request: Request) -> bool:
        client = self._clients.get(request.client)
        return client is not None and request in client.waiting

    def __iter__(self) -> Iterator[Request]:
        for client in self._clients.values():
            yield from client.waiting

    def ahead_of(self, name: str) -> int:
        """About how many go before the next request of that client."""
        own = self.waiting_of(name)
        return sum(min(len(client.waiting), own + 1) for client in self._clients.values())

    def waiting_of(self, name: str) -> int:
        """How many requests of that client wait."""
        client = self._clients.get(name)
        return 0 if client is None else len(client.waiting)

    def add(self, request: Request) -> None:
        """Line a request up."""
        place = self.ahead_of(request.client) + 1
        client = self._clients.setdefault(request.client, _Client(finish=self._virtual_time))
        start = max(self._virtual_time, client.finish)
        client.finish = start + request.options.beam_size * (len(request.source) + _OVERHEAD_TOKENS)
        client.waiting[request] = place
        heapq.heappush(self._order, (start, next(self._sequence), request))
        self._count += 1
        self.slots += request.options.beam_size

    def first(self) -> Request | None:
        """Who is next; `None` where nobody waits."""
        while self._order:
            start, _, request = self._order[0]
            if request in self:
                self._virtual_time = max(self._virtual_time, start)
                return request
            heapq.heappop(self._order)
        return None

    def remove(self, request: Request) -> int:
        """Take one out; returns the place that it came to, 1 for the first."""
        client = self._clients[request.client]
        place = client.waiting.pop(request)
        if not client.waiting:
            del self._clients[request.client]
        self._count -= 1
        self.slots -= request.options.beam_size
        if len(self._order) > 2 * self._count + _MIN_STALE:
            self._order = [entry for entry in self._order if entry[2] in self]
            heapq.heapify(self._order)
        return place

    def newest_of_heaviest(self) -> Request:
        """The request that came last, of the client that has most waiting; somebody waits."""
        heaviest = max(self._clients.values(), key=lambda client: len(client.waiting))
        return next(reversed(heaviest.waiting))
