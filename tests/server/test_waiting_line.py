"""Clients take turns; each keeps its order; what leaves out of turn leaves nothing behind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.engine.messages import DecodingOptions
from dragoman_server.engine.waiting_line import WaitingLine


@pytest.fixture(scope="session")
def request_of(caller):
    def make(client, tokens=4, beam_size=1):
        request = caller((5,) * tokens, DecodingOptions(beam_size=beam_size)).request
        request.client = client
        return request

    return make


def serve_next(line):
    request = line.first()
    line.serve(request)
    return request


def served(line):
    """Everybody, in the order in which they are next."""
    return [serve_next(line) for _ in range(len(line))]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.integers(1, 4)), max_size=40))
def test_each_client_is_first_in_first_out_and_everybody_is_served(request_of, arrivals):
    line = WaitingLine()
    requests = [request_of(*arrival) for arrival in arrivals]
    for request in requests:
        line.add(request)
    assert line.slots == sum(request.options.beam_size for request in requests)
    order = served(line)
    for client in "abc":
        assert [r for r in order if r.client == client] == [r for r in requests if r.client == client]
    assert (len(order), len(line), line.slots) == (len(requests), 0, 0)


def test_a_small_client_does_not_wait_behind_a_large_one(request_of):
    line = WaitingLine()
    for _ in range(100):
        line.add(request_of("large"))
    for _ in range(10):
        serve_next(line)
    small = request_of("small")
    assert line.ahead_of("small") == 1
    line.add(small)
    assert served(line).index(small) <= 1


@given(st.integers(1, 5), st.integers(1, 5))
def test_equal_clients_get_equal_work_whatever_the_size_of_their_requests(request_of, one, other):
    """Until either is done, the work served differs by no more than the largest request of each."""
    line, work, largest = WaitingLine(), {"a": 0, "b": 0}, 4 * (max(one, other) + 8)
    for _ in range(30):
        line.add(request_of("a", one, 4))
        line.add(request_of("b", other, 1))
    waiting = {"a": 30, "b": 30}
    for request in served(line):
        work[request.client] += request.options.beam_size * (len(request.source) + 8)
        waiting[request.client] -= 1
        if not min(waiting.values()):
            break
        assert abs(work["a"] - work["b"]) <= 2 * largest


def test_a_client_gains_nothing_by_having_been_away(request_of):
    line = WaitingLine()
    for number in range(50):
        line.add(request_of("busy" if number % 2 else "other"))
    served(line)
    for _ in range(20):
        line.add(request_of("busy"))
        line.add(request_of("back"))
    order = [request.client for request in served(line)]
    assert abs(order[:20].count("back") - 10) <= 1


@pytest.mark.parametrize("tokens", [4, 400])
def test_a_client_that_never_has_two_waiting_does_not_starve_another(request_of, tokens):
    line, work = WaitingLine(), {"backlog": 0, "refill": 0}
    for _ in range(1000):
        line.add(request_of("backlog"))
    for _ in range(300):
        if not line.waiting_of("refill"):
            line.add(request_of("refill", tokens))
        request = serve_next(line)
        work[request.client] += len(request.source) + 8
    assert abs(work["backlog"] - work["refill"]) <= 2 * (tokens + 8)


def test_what_leaves_unserved_costs_its_client_nothing(request_of):
    line = WaitingLine()
    for _ in range(50):
        line.add(request_of("steady"))
    for _ in range(100):
        line.add(gone := request_of("moody"))
        line.remove(gone)
    line.add(back := request_of("moody"))
    assert served(line).index(back) <= 1


def test_nobody_passes_who_is_next(request_of):
    line = WaitingLine()
    for _ in range(3):
        line.add(request_of("first"))
    serve_next(line)
    waits_for_room = line.first()
    for number in range(20):
        line.add(request_of(f"new {number}"))
    assert line.first() is waits_for_room


def test_few_of_those_that_were_served_are_remembered(request_of):
    line = WaitingLine()
    line.add(request_of("stays"))
    line.add(request_of("stays"))
    for number in range(10_000):
        line.add(request_of(str(number)))
        serve_next(line)
    assert len(line._served) <= 1024
    served(line)
    assert not line._served


def test_who_leaves_out_of_turn_is_forgotten(request_of):
    line = WaitingLine()
    first = request_of("a")
    line.add(first)
    for _ in range(10_000):
        passing = request_of("b")
        line.add(passing)
        line.remove(passing)
    assert len(line._order) < 200
    assert list(line) == [first]
    assert served(line) == [first]


def test_the_newest_of_the_heaviest_is_found(request_of):
    line = WaitingLine()
    for client in "aabbbc":
        line.add(newest := request_of(client))
        if client == "b":
            expected = newest
    assert line.newest_of_heaviest() is expected


def test_a_client_that_is_passed_keeps_its_place(request_of):
    line = WaitingLine()
    first, second, other, last = (request_of(client) for client in ("a", "a", "b", "c"))
    for request in (first, second, other, last):
        line.add(request)
    assert line.first({"a"}) is other
    line.serve(other)
    assert line.first({"a", "c"}) is None
    assert line.first() is first
    assert served(line) == [first, last, second]
