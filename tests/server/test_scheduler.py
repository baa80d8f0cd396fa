"""The queue's policy: order, bounds, expiry, and the hint when to retry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.engine.messages import DecodingOptions
from dragoman_server.engine.runner import Extent
from dragoman_server.engine.scheduler import (
    MAX_ENCODER_TOKENS,
    MAX_PADDING,
    Occupancy,
    Scheduler,
    batches_of_similar_length,
)
from dragoman_server.errors import DeadlineUnreachableError, QueueFullError

NOTHING = Extent(0, 0, 0)
GREEDY = DecodingOptions(beam_size=1)


def admit(scheduler, free_slots, now):
    """The batches of a worker that has so many slots, and memory for whatever is in them."""
    return scheduler.admit(NOTHING, lambda extent: extent.rows <= free_slots, now)


shapes = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 8)), max_size=40)


@pytest.fixture(scope="session")
def make_requests(caller):
    """Requests from pairs of source length and beam size."""

    def make(pairs):
        return [caller((5,) * length, DecodingOptions(beam_size=beam)).request for length, beam in pairs]

    return make


@pytest.fixture(scope="session")
def queued(make_requests):
    def make(pairs):
        scheduler, requests = Scheduler(max_queue=len(pairs) + 1), make_requests(pairs)
        for request in requests:
            scheduler.add(request)
        return scheduler, requests

    return make


@given(shapes, st.lists(st.integers(0, 16), max_size=30))
def test_nobody_is_overtaken_and_nothing_exceeds_its_bound(queued, pairs, free):
    scheduler, expected = queued(pairs)
    for slots in free:
        batch = [request for part in admit(scheduler, slots, now=1.0) for request in part]
        front, expected = expected[: len(batch)], expected[len(batch) :]
        assert set(batch) == set(front)
        assert sum(request.options.beam_size for request in batch) <= slots
        assert len(batch) <= 1 or sum(len(request.source) for request in batch) <= MAX_ENCODER_TOKENS
    assert len(scheduler) == len(expected)


@given(shapes.filter(bool))
def test_the_oldest_is_in_the_next_batch_that_can_hold_it(queued, pairs):
    scheduler, requests = queued(pairs)
    oldest = requests[0]
    assert admit(scheduler, oldest.options.beam_size - 1, now=0.0) == []
    assert any(oldest in batch for batch in admit(scheduler, oldest.options.beam_size, now=0.0))


@given(shapes, st.integers(0, 20), st.integers(1, 4000))
def test_what_is_admitted_fits_at_its_greatest_length_beside_what_is_held(queued, pairs, rows, cells):
    scheduler, requests = queued(pairs)
    held = Extent(rows, 10, 10)

    def fits(extent):
        return extent.rows * (extent.positions + extent.source_positions) <= cells

    admitted = [request for batch in scheduler.admit(held, fits, now=0.0) for request in batch]
    together = [(rows, 10, 10)]
    together += [(r.options.beam_size, r.max_output_tokens, len(r.source)) for r in requests[: len(admitted)]]
    beams, outputs, sources = zip(*together, strict=True)
    assert set(admitted) == set(requests[: len(admitted)])
    assert not admitted or sum(beams) * (max(outputs) + max(sources)) <= cells


@given(shapes)
def test_every_wait_is_bounded_by_the_place_in_the_queue(queued, pairs):
    scheduler, requests = queued(pairs)
    admitted = set()
    for place, request in enumerate(requests):
        for batch in admit(scheduler, 8, now=0.0):
            admitted.update(batch)
        assert request in admitted, f"place {place} waited for more than {place + 1} admissions"


@given(shapes)
def test_no_source_is_padded_by_more_than_the_bound(make_requests, pairs):
    requests = make_requests(pairs)
    batches = batches_of_similar_length(requests)
    assert sorted(map(id, requests)) == sorted(id(request) for batch in batches for request in batch)
    for batch in batches:
        lengths = [len(request.source) for request in batch]
        assert max(lengths) - min(lengths) <= MAX_PADDING


def test_the_queue_refuses_exactly_what_exceeds_it(make_requests):
    scheduler = Scheduler(max_queue=3)
    requests = make_requests([(4, 1)] * 10)
    for request in requests[:3]:
        scheduler.add(request)
    for request in requests[3:]:
        with pytest.raises(QueueFullError) as refusal:
            scheduler.add(request)
        assert refusal.value.retry_after_seconds > 0
    assert len(scheduler) == 3
    assert admit(scheduler, 1, now=0.0) == [requests[:1]]
    scheduler.add(requests[3])
    assert len(scheduler) == 3


def test_the_retry_hint_follows_the_pace_of_admission(make_requests):
    def hint(seconds):
        scheduler = Scheduler(max_queue=10)
        for number in range(200):
            (request,) = make_requests([(4, 1)])
            request.arrived = float(number)
            scheduler.add(request)
            admit(scheduler, 1, now=number + seconds)
        return scheduler.retry_after

    assert hint(0.0) == pytest.approx(0.05)  # never at once
    assert hint(0.2) == pytest.approx(0.2 * 10 / 2)
    assert hint(1000.0) == 30.0


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=20),
    st.lists(st.integers(0, 25), max_size=8).map(sorted),
    st.data(),
)
def test_the_gone_are_dropped_once_and_never_admitted(caller, deadlines, times, data):
    scheduler = Scheduler(max_queue=100)
    waiting = [caller((5,), deadline=deadline).request for deadline in deadlines]
    for request in waiting:
        scheduler.add(request)
    for now in times:
        cancelled = {request for request in waiting if data.draw(st.booleans())}
        for request in [*cancelled, *cancelled]:
            scheduler.cancel(request)
        dropped = scheduler.drop(now)
        late = {request for request in waiting if request.deadline is not None and request.deadline <= now}
        assert len(dropped) == len(set(dropped))
        assert set(dropped) == cancelled | late
        waiting = [request for request in waiting if request not in dropped]
        admitted = {request for batch in admit(scheduler, 8, now) for request in batch}
        assert admitted <= set(waiting)
        waiting = [request for request in waiting if request not in admitted]
    assert len(scheduler) == len(waiting)
    assert scheduler.has_work == bool(waiting)


def test_a_full_queue_makes_room_for_a_client_that_has_less_in_it(caller):
    def request(client):
        one = caller((5,), GREEDY).request
        one.client = client
        return one

    scheduler = Scheduler(max_queue=4)
    large = [request("large") for _ in range(4)]
    for one in large:
        assert scheduler.add(one) is None
    assert scheduler.add(request("small")) is large[3]
    assert scheduler.add(request("small")) is large[2]
    # Now both have as much.
    with pytest.raises(QueueFullError):
        scheduler.add(request("small"))
    with pytest.raises(QueueFullError):
        scheduler.add(request("large"))
    assert len(scheduler) == 4


@pytest.fixture
def busy(caller):
    """A scheduler that knows: one second of waiting for each ahead, and one from admission to the end."""

    def make(waiting):
        scheduler = Scheduler(max_queue=100)
        for number in range(200):
            one = caller((5,), GREEDY).request
            one.arrived = float(number)
            scheduler.add(one)
            admit(scheduler, 1, now=number + 1.0)
            scheduler.finished(one, 1.0)
        for _ in range(waiting):
            scheduler.add(caller((5,), GREEDY).request)
        return scheduler

    return make


@pytest.mark.parametrize(
    ("waiting", "seconds", "accepted"), [(3, 3.9, False), (3, 4.1, True), (0, 0.1, True)]
)
def test_who_would_be_late_is_refused_at_once(busy, caller, waiting, seconds, accepted):
    scheduler = busy(waiting)
    one = caller((5,), GREEDY, deadline=1000.0 + seconds).request
    one.arrived = 1000.0
    if accepted:
        scheduler.add(one)
    else:
        with pytest.raises(DeadlineUnreachableError):
            scheduler.add(one)
    assert len(scheduler) == waiting + accepted


def test_nobody_is_refused_while_nothing_is_known(caller):
    scheduler = Scheduler(max_queue=100)
    for _ in range(50):
        scheduler.add(caller((5,), GREEDY, deadline=0.001).request)
    assert len(scheduler) == 50


def test_who_is_late_when_its_turn_comes_is_dropped_unless_nothing_else_is_done(busy, caller):
    scheduler = busy(waiting=0)
    late, other = (caller((5,), GREEDY, deadline=deadline).request for deadline in (1001.0, None))
    for one in (late, other):
        one.arrived = 1000.0
        scheduler.add(one)
    held = Extent(1, 1, 1)
    assert scheduler.admit(held, lambda extent: True, now=1000.5) == [[other]]
    assert scheduler.drop(now=1000.5) == [late]
    scheduler.add(late)
    assert scheduler.admit(NOTHING, lambda extent: True, now=1000.5) == [[late]]


@pytest.fixture(scope="session")
def contended(caller):
    """One request of beam size 4 for each name, all come at 0 s."""

    def make(clients):
        scheduler = Scheduler(max_queue=100)
        for client in clients:
            request = caller((5,), DecodingOptions(beam_size=4)).request
            request.client = client
            scheduler.add(request)
        return scheduler

    return make


def admitted_to(scheduler, occupancy, now=1.0):
    held = Extent(sum(occupancy.by_client.values()), 1, 1)
    batches = scheduler.admit(held, lambda extent: extent.rows <= occupancy.slots, now, occupancy=occupancy)
    return [request.client for batch in batches for request in batch]


def test_of_several_clients_none_fills_the_last_slots(contended):
    scheduler = contended(["greedy"] * 12 + ["small"])
    clients = admitted_to(scheduler, Occupancy(32))
    assert (clients.count("greedy"), clients.count("small")) == (7, 1)
    assert admitted_to(scheduler, Occupancy(32, {"greedy": 28})) == []
    assert admitted_to(scheduler, Occupancy(32, {"greedy": 20})) == ["greedy"] * 2


def test_who_holds_none_passes_a_client_that_may_have_no_more(contended):
    scheduler = contended(["greedy"] * 12 + ["small"] * 2)
    assert admitted_to(scheduler, Occupancy(64, {"greedy": 60})) == ["small"]


def test_a_client_alone_fills_every_slot(contended):
    assert admitted_to(contended(["greedy"] * 12), Occupancy(32)) == ["greedy"] * 8
    long_ago = contended(["small"] + ["greedy"] * 12)
    assert len(admitted_to(long_ago, Occupancy(32), now=11.0)) == 8


def test_of_few_slots_none_is_kept_back(contended):
    assert admitted_to(contended(["small"] + ["greedy"] * 12), Occupancy(12, {"greedy": 8})) == ["small"]
    assert admitted_to(contended(["greedy"] * 12 + ["small"]), Occupancy(12, {"greedy": 8})) == ["greedy"]


def test_who_holds_none_may_have_all_slots(caller, contended):
    scheduler = contended([])
    for client in ("small", "wide"):
        request = caller((5,), DecodingOptions(beam_size=32 if client == "wide" else 1)).request
        request.client = client
        scheduler.add(request)
    assert admitted_to(scheduler, Occupancy(32)) == ["small"]
    assert admitted_to(scheduler, Occupancy(32)) == ["wide"]


def test_clear_takes_the_waiting_and_the_cancelled(queued):
    scheduler, requests = queued([(4, 1)] * 3)
    scheduler.cancel(requests[1])
    assert set(scheduler.clear()) == set(requests)
    assert not scheduler.has_work
    assert scheduler.drop(now=0.0) == []


def test_a_queue_holds_at_least_one():
    with pytest.raises(ValueError, match="max_queue"):
        Scheduler(max_queue=0)
