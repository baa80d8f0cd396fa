"""The order in which requests of several clients are served.

Start-time fair queueing (Goyal, Vin and Cheng 1996, "Start-time fair queueing"): each client's next request
is tagged with the virtual time at which the client, had it an equal share to itself, would begin it. The
lowest tag is next, so that a client with a thousand requests waiting does not hold up one with a single
request. Those of one client stay in order, and with one client this is first in, first out. What is served is
charged to its client, even where that has nothing waiting for a moment; what leaves otherwise is not.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from dragoman_server.engine.messages import Request

__all__ = ["WaitingLine"]

_OVERHEAD_TOKENS = 8
"""What a request costs beside its tokens, in tokens."""
_MIN_STALE = 64
_MAX_SERVED = 1024
"""Clients with nothing waiting that are remembered: whoever can invent names may not fill the memory."""


@dataclass(slots=True)
class _Client:
    """What one client has waiting: oldest first, each with its place when it came."""

    start: float
    """The virtual time at which its next request begins."""
    ticket: int
    """Says which entry of the order is this client's."""
    waiting: OrderedDict[Request, int] = field(default_factory=OrderedDict)


class WaitingLine:
    """Waiting requests; not thread-safe."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}
        # Entries that no client holds the ticket of stay here until met, or until there are too many such.
        self._order: list[tuple[float, int, str]] = []
        self._tickets = itertools.count()
        self._virtual_time = 0.0
        # Clients with nothing waiting that are ahead of their share, and until when; oldest first.
        self._served: OrderedDict[str, float] = OrderedDict()
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
        if request.client not in self._clients:
            self._enter(request.client, max(self._virtual_time, self._served.pop(request.client, 0.0)))
        self._clients[request.client].waiting[request] = place
        self._count += 1
        self.slots += request.options.beam_size

    def first(self, passing_over: Container[str] = ()) -> Request | None:
        """Who is next, and stays so until it leaves; `None` where nobody waits.

        Args:
            passing_over: Clients whose turn is not now; they keep their place.
        """
        while self._order:
            start, ticket, name = self._order[0]
            client = self._clients.get(name)
            if client is not None and client.ticket == ticket:
                if name in passing_over:
                    return self._first_but(passing_over)
                self._virtual_time = max(self._virtual_time, start)
                return next(iter(client.waiting))
            heapq.heappop(self._order)
        return None

    def _first_but(self, passing_over: Container[str]) -> Request | None:
        others = (client for name, client in self._clients.items() if name not in passing_over)
        client = min(others, key=lambda client: (client.start, client.ticket), default=None)
        if client is None:
            return None
        self._virtual_time = max(self._virtual_time, client.start)
        return next(iter(client.waiting))

    def serve(self, request: Request) -> int:
        """Take out what `first` said, at its client's cost; returns the place that it came to, from 1."""
        client = self._clients[request.client]
        start = client.start + request.options.beam_size * (len(request.source) + _OVERHEAD_TOKENS)
        place = self._take(request)
        if client.waiting:
            client.start, client.ticket = start, next(self._tickets)
            heapq.heappush(self._order, (start, client.ticket, request.client))
            self._forget_stale()
        else:
            self._remember(request.client, start)
        return place

    def remove(self, request: Request) -> None:
        """Take one out that is not served."""
        client = self._clients[request.client]
        self._take(request)
        if not client.waiting:
            self._remember(request.client, client.start)

    def newest_of_heaviest(self) -> Request:
        """The request that came last, of the client that has most waiting; somebody waits."""
        heaviest = max(self._clients.values(), key=lambda client: len(client.waiting))
        return next(reversed(heaviest.waiting))

    def _enter(self, name: str, start: float) -> None:
        client = self._clients[name] = _Client(start, next(self._tickets))
        heapq.heappush(self._order, (start, client.ticket, name))

    def _take(self, request: Request) -> int:
        place = self._clients[request.client].waiting.pop(request)
        self._count -= 1
        self.slots -= request.options.beam_size
        return place

    def _remember(self, name: str, start: float) -> None:
        """A client has nothing waiting: keep only how far it is ahead of its share of others' waiting."""
        del self._clients[name]
        if not self._clients:
            self._served.clear()
        elif start > self._virtual_time:
            self._served[name] = start
            if len(self._served) > _MAX_SERVED:
                self._served.popitem(last=False)
        self._forget_stale()

    def _forget_stale(self) -> None:
        if len(self._order) > 2 * len(self._clients) + _MIN_STALE:
            self._order = [(one.start, one.ticket, name) for name, one in self._clients.items()]
            heapq.heapify(self._order)
