"""How several workers share one queue; the threads themselves are tested with the engine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.engine.messages import DecodingOptions
from dragoman_server.engine.runner import Extent
from dragoman_server.engine.scheduler import Scheduler
from dragoman_server.engine.shared_queue import SharedQueue

MAX_BEAM = 5
beams = st.lists(st.integers(1, MAX_BEAM), max_size=30)


def slots_of(intake):
    return sum(request.options.beam_size for batch in intake.batches for request in batch)


def take(queue, worker, held, free):
    """What a worker takes that holds so many slots and has so many free."""
    return queue.take(worker, Extent(held, 0, 0), lambda extent: extent.rows <= held + free, now=0.0)


def put(queue, caller, beam_sizes):
    for beam_size in beam_sizes:
        queue.put(caller((5,), DecodingOptions(beam_size=beam_size)).request)


@given(st.integers(1, 4), st.lists(beams, max_size=6))
def test_every_round_of_takes_admits_all_and_fills_workers_evenly(caller, workers, arrivals):
    queue, held = SharedQueue(Scheduler(max_queue=1000), workers), [0] * workers
    for beam_sizes in arrivals:
        put(queue, caller, beam_sizes)
        for worker in range(workers):
            held[worker] += slots_of(take(queue, worker, held=held[worker], free=1000))
        assert queue.waiting == 0
        # A worker stops at the even share of all; its last request may exceed that by less than itself.
        assert max(held) <= -(-sum(held) // workers) + MAX_BEAM - 1


def test_a_worker_that_went_to_sleep_holds_nothing(caller):
    queue = SharedQueue(Scheduler(max_queue=10), workers=2)
    put(queue, caller, [4, 4])
    assert slots_of(take(queue, 1, held=0, free=8)) == 4
    assert slots_of(take(queue, 0, held=0, free=8)) == 4
    put(queue, caller, [1])
    assert queue.wait_for_work(1)
    assert slots_of(take(queue, 0, held=4, free=4)) == 0
    assert slots_of(take(queue, 1, held=0, free=8)) == 1


def test_the_share_follows_what_workers_still_hold(caller):
    queue = SharedQueue(Scheduler(max_queue=10), workers=2)
    put(queue, caller, [4, 4])
    for worker in (0, 1):
        assert slots_of(take(queue, worker, held=0, free=16)) == 4
    put(queue, caller, [4, 4, 4])
    # The first worker has finished its request: of 4 + 12 slots, half are its share.
    assert slots_of(take(queue, 0, held=0, free=16)) == 8
    assert slots_of(take(queue, 1, held=4, free=16)) == 4


@given(beams, st.integers(0, 20))
def test_free_slots_are_never_exceeded(caller, beam_sizes, free_slots):
    queue = SharedQueue(Scheduler(max_queue=1000))
    put(queue, caller, beam_sizes)
    assert slots_of(take(queue, 0, held=0, free=free_slots)) <= free_slots
