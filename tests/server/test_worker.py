"""The worker's loop, stepped by hand on a clock of the test's own."""

from __future__ import annotations

import contextlib
import math
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman_server.engine.messages import DecodingOptions, Finished, FinishReason
from dragoman_server.errors import CancelledError, DeadlineError, DeadlineUnreachableError

GREEDY = DecodingOptions(beam_size=1)


@st.composite
def decoding_options(draw):
    beam_size = draw(st.integers(1, 5))
    return DecodingOptions(
        beam_size=beam_size,
        n_best=draw(st.integers(1, beam_size)),
        length_penalty=draw(st.sampled_from([0.0, 0.6, 2.0])),
        max_output_tokens=draw(st.one_of(st.none(), st.integers(1, 10))),
    )


sources = st.lists(st.integers(3, 90), min_size=1, max_size=12).map(tuple)
memories = st.sampled_from([math.inf, 5 * (12 + 40)])
"""Without bound, or for no more than the largest of the requests below."""
requests = st.lists(st.tuples(sources, decoding_options()), min_size=1, max_size=8)


@given(requests, memories)
@settings(deadline=None, max_examples=60)
def test_a_batch_gives_what_each_request_gives_alone(bench_of, scripted_runner, caller, several, memory):
    together = [caller(*one) for one in several]
    bench = bench_of(scripted_runner(max_cells=memory))
    bench.put(*together)
    bench.finish()
    for one, beside_others in zip(several, together, strict=True):
        alone = caller(*one)
        bench = bench_of(scripted_runner())
        bench.put(alone)
        bench.finish()
        assert beside_others.end.hypotheses == alone.end.hypotheses


action = st.one_of(
    st.tuples(st.just("put"), sources, decoding_options(), st.one_of(st.none(), st.integers(0, 12))),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("step"), st.integers(1, 6)),
)


@given(st.lists(action, max_size=30), memories)
@settings(deadline=None, max_examples=100)
def test_random_traces_leak_nothing_and_answer_everyone_once(
    bench_of, scripted_runner, caller, trace, memory
):
    bench, callers, cancelled = bench_of(scripted_runner(max_cells=memory)), [], set()
    for kind, *arguments in trace:
        if kind == "put":
            source, options, seconds = arguments
            deadline = None if seconds is None else bench.now + seconds
            one = caller(source, options, deadline=deadline, wants_progress=True)
            with contextlib.suppress(DeadlineUnreachableError):
                bench.put(one)
                callers.append(one)
        elif kind == "cancel" and arguments[0] < len(callers):
            one = callers[arguments[0]]
            if not one.ends:
                cancelled.add(one)
            bench.queue.cancel(one.request)
        elif kind == "step":
            for _ in range(arguments[0]):
                bench.now += 1
                bench.worker.step()
    bench.finish()
    assert (bench.worker.slots_in_use, bench.queue.waiting) == (0, 0)
    outcomes = {kind: count for kind, count in bench.telemetry.totals.outcomes.items() if count}
    assert sum(outcomes.values()) == len(callers)
    for one in callers:
        if isinstance(one.end, Finished):
            alone = caller(one.request.source, one.request.options)
            fresh = bench_of(scripted_runner())
            fresh.put(alone)
            fresh.finish()
            assert one.end.hypotheses == alone.end.hypotheses
            for shorter, longer in pairwise([*one.progress, one.end.hypotheses[0].tokens]):
                assert longer[: len(shorter)] == shorter
            for shorter, longer in pairwise(one.progress):
                assert len(shorter) < len(longer)
        else:
            late = (DeadlineError, DeadlineUnreachableError)
            assert isinstance(one.end.error, CancelledError if one in cancelled else late)


@given(requests)
@settings(deadline=None, max_examples=30)
def test_only_rows_that_requests_hold_are_run(bench_of, scripted_runner, caller, several):
    bench = bench_of(scripted_runner())
    bench.put(*(caller(*one) for one in several))
    while bench.queue.unanswered:
        bench.worker.step()
    totals = bench.telemetry.totals
    assert sum(bench.runner.rows) == totals.rows
    assert 0 <= totals.padded_rows <= totals.rows
    holding = sum(one.beam_size for _, one in several)
    assert max(bench.runner.rows) <= min(holding, bench.runner.limits.max_rows)


def test_gaps_are_closed_before_the_next_step(bench_of, endless_runner, caller):
    bench = bench_of(endless_runner())
    first, second, third = (caller((number,), GREEDY) for number in (3, 4, 5))
    bench.put(first, second, third)
    bench.worker.step()
    bench.queue.cancel(first.request)
    bench.worker.step()
    assert bench.runner.rows == [3, 2]
    (copy,) = bench.runner.copied
    assert (copy.source, copy.target, copy.start, copy.stop, copy.with_memory) == (2, 0, 0, 1, True)


def test_a_new_request_joins_at_the_next_step(bench_of, endless_runner, caller):
    bench = bench_of(endless_runner())
    bench.put(caller((3,), GREEDY))
    bench.worker.step()
    late = caller((4,), GREEDY, wants_progress=True)
    bench.put(late)
    bench.worker.step()
    assert bench.runner.rows == [1, 2]
    assert [len(tokens) for tokens in late.progress] == [1]


def test_a_cancelled_request_frees_its_slots_for_the_next_step(bench_of, endless_runner, caller):
    bench = bench_of(endless_runner(max_rows=4))
    gone, waiting = caller((3,)), caller((4,))
    bench.put(gone, waiting)
    bench.worker.step()
    assert bench.queue.waiting == 1
    bench.queue.cancel(gone.request)
    bench.worker.step()
    assert isinstance(gone.end.error, CancelledError)
    assert bench.runner.encoded == [[(3,)], [(4,)]]


def test_a_request_cancelled_while_it_waits_is_answered_behind_a_full_batch(bench_of, endless_runner, caller):
    bench = bench_of(endless_runner(max_rows=4))
    decoding, waiting = caller((3,)), caller((4,))
    bench.put(decoding, waiting)
    bench.worker.step()
    bench.queue.cancel(waiting.request)
    bench.worker.step()
    assert isinstance(waiting.end.error, CancelledError)
    assert not decoding.ends
    assert bench.runner.encoded == [[(3,)]]


def test_deadlines_end_requests_in_the_queue_and_in_a_slot(bench_of, endless_runner, caller):
    bench = bench_of(endless_runner(max_rows=4))
    decoding, waiting = caller((3,), deadline=2.0), caller((4,), deadline=1.0)
    bench.put(decoding, waiting)
    bench.worker.step()
    assert not decoding.events
    bench.now = 1.0
    bench.worker.step()
    assert isinstance(waiting.end.error, DeadlineError)
    assert not decoding.ends
    bench.now = 2.0
    bench.worker.step()
    assert isinstance(decoding.end.error, DeadlineError)
    assert bench.worker.slots_in_use == 0


def test_times_add_up(bench_of, scripted_runner, caller):
    class Timed(scripted_runner):
        def encode(self, sources, slots):
            bench.now += 10
            super().encode(sources, slots)

        def step(self, tokens, lengths, top_k):
            bench.now += 1
            return super().step(tokens, lengths, top_k)

    bench = bench_of(Timed())
    one = caller((3,))
    bench.put(one)
    bench.now += 100
    bench.finish()
    timing = one.end.timing
    assert (timing.queue, timing.encode, timing.decode) == (100, 10, len(bench.runner.rows))


def test_a_bound_on_the_output_is_kept_and_reported(bench_of, endless_runner, caller):
    bench = bench_of(endless_runner())
    one = caller((3, 4), DecodingOptions(beam_size=3, n_best=3, max_output_tokens=5))
    bench.put(one)
    bench.finish()
    assert [len(hypothesis.tokens) for hypothesis in one.end.hypotheses] == [5, 5, 5]
    assert {hypothesis.finish_reason for hypothesis in one.end.hypotheses} == {FinishReason.LENGTH}
    assert len(bench.runner.rows) == 5


def test_a_long_request_waits_until_there_is_memory_and_gaps_are_closed_for_it(
    bench_of, endless_runner, caller
):
    bench = bench_of(endless_runner(max_cells=5 * 50))
    short = DecodingOptions(beam_size=1, max_output_tokens=20)
    several = [caller((number,), short) for number in range(3, 11)]
    long = caller((5,) * 30, DecodingOptions(beam_size=4, max_output_tokens=15))
    bench.put(*several)
    bench.worker.step()
    assert bench.runner.rows == [8]
    bench.put(long)
    bench.worker.step()
    assert bench.queue.waiting == 1
    for one in several[:-1]:  # the last one's row lies behind seven gaps
        bench.queue.cancel(one.request)
    bench.worker.step()
    assert bench.queue.waiting == 0
    assert bench.runner.rows == [8, 8, 5]
    assert bench.runner.reserved.rows == 5
    bench.finish()
    alone = caller((10,), short)
    fresh = bench_of(endless_runner())
    fresh.put(alone)
    fresh.finish()
    assert several[-1].end.hypotheses == alone.end.hypotheses
