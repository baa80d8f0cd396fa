"""What breaks around the worker harms only those whom it concerns."""

from __future__ import annotations

import logging
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman_server.engine.messages import DecodingOptions, Failed, Finished
from dragoman_server.errors import CancelledError, EngineError

GREEDY = DecodingOptions(beam_size=1)


def test_a_failing_encoder_fails_its_batch_alone(bench_of, scripted_runner, caller, caplog):
    class Broken(scripted_runner):
        def encode(self, sources, slots):
            if (13,) in sources:
                raise RuntimeError("no memory")
            super().encode(sources, slots)

    bench = bench_of(Broken())
    early, bad, late = caller((3,)), caller((13,)), caller((4,))
    bench.put(early)
    bench.worker.step()
    bench.put(bad)
    with caplog.at_level(logging.CRITICAL, "dragoman_server"):
        bench.worker.step()
    bench.put(late)
    bench.finish()
    assert isinstance(bad.end.error, EngineError)
    assert str(bad.end.error.__cause__) == "no memory"
    assert isinstance(early.end, Finished)
    assert isinstance(late.end, Finished)
    assert bench.worker.slots_in_use == 0


def test_batches_that_fail_in_all_their_rows_are_counted_until_one_does_not(
    bench_of, scripted_runner, caller, caplog
):
    class Ill(scripted_runner):
        state = "well"

        def encode(self, sources, slots):
            if self.state == "encode":
                raise RuntimeError("ill")
            super().encode(sources, slots)

        def step(self, tokens, lengths, top_k):
            if self.state == "step":
                raise RuntimeError("ill")
            log_probs, token_ids = super().step(tokens, lengths, top_k)
            if self.state in ("nan", "half nan"):
                log_probs[: 1 if self.state == "half nan" else None] = np.nan
            return log_probs, token_ids

    bench = bench_of(Ill())
    caplog.set_level(logging.CRITICAL, "dragoman_server")
    counts = []
    for state in ("well", "step", "encode", "nan", "half nan"):
        bench.runner.state = state
        options = DecodingOptions(beam_size=1, max_output_tokens=1)
        bench.put(*(caller((3, number), options) for number in range(1 if state == "well" else 2)))
        bench.worker.step()
        counts.append(bench.telemetry.failed_batches)
        bench.runner.state = "well"
        bench.finish()
    # The two whose encoder run has failed are tried one by one, and nothing works before the next.
    assert counts == [0, 1, 3, 4, 0]


@pytest.fixture(scope="session")
def allergic_runner(scripted_runner):
    """A runner that raises where a source with token 13 has part in a run of that verb."""

    class Allergic(scripted_runner):
        verb = "step"

        def encode(self, sources, slots):
            if self.verb == "encode" and any(13 in source for source in sources):
                raise RuntimeError("allergy")
            super().encode(sources, slots)

        def step(self, tokens, lengths, top_k):
            if self.verb == "step" and any(13 in self.memory[slot] for slot in range(len(tokens))):
                raise RuntimeError("allergy")
            return super().step(tokens, lengths, top_k)

    return Allergic


@pytest.mark.parametrize("verb", ["encode", "step"])
@given(
    st.lists(st.lists(st.integers(3, 15), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12),
    st.sampled_from([GREEDY, DecodingOptions(beam_size=3, n_best=2)]),
)
@settings(deadline=None, max_examples=40)
def test_only_the_guilty_fail_and_the_others_come_out_as_ever(
    bench_of, scripted_runner, allergic_runner, caller, verb, sources, options
):
    runner = allergic_runner()
    runner.verb = verb
    bench, healthy = bench_of(runner), bench_of(scripted_runner())
    several = [caller(source, options, wants_progress=True) for source in sources]
    expected = [caller(source, options, wants_progress=True) for source in sources]
    logging.disable()
    bench.put(*several)
    bench.finish()
    logging.disable(logging.NOTSET)
    healthy.put(*expected)
    healthy.finish()
    for one, other in zip(several, expected, strict=True):
        if 13 in one.request.source:
            assert isinstance(one.end.error, EngineError)
        else:
            assert one.end.hypotheses == other.end.hypotheses
            assert all(len(tokens) < len(longer) for tokens, longer in pairwise(one.progress))
    assert bench.worker.slots_in_use == 0


def test_one_guilty_among_many_costs_few_repetitions(bench_of, allergic_runner, caller, caplog):
    bench = bench_of(allergic_runner(max_rows=64))
    several = [caller((number % 9 + 3,), GREEDY) for number in range(31)]
    with caplog.at_level(logging.CRITICAL, "dragoman_server"):
        bench.put(*several[:16], caller((13,), GREEDY), *several[16:])
        bench.finish()
    encoded = sum(len(batch) for batch in bench.runner.encoded)
    assert 32 < encoded <= 32 * (1 + math.log2(32))


def test_who_waits_in_quarantine_can_be_cancelled_and_nobody_joins(bench_of, allergic_runner, caller, caplog):
    bench = bench_of(allergic_runner())
    bad, suspect, innocent, newcomer = (caller(source, GREEDY) for source in ((13,), (3,), (4,), (5,)))
    bench.put(bad, suspect, innocent)
    with caplog.at_level(logging.CRITICAL, "dragoman_server"):
        bench.worker.step()  # fails; all are suspects now, and go on in two groups
        bench.put(newcomer)
        for one in (suspect, innocent):
            bench.queue.cancel(one.request)
        bench.worker.step()  # the guilty one is alone
        assert isinstance(bad.end.error, EngineError)
        assert not newcomer.events
        bench.finish()
    assert isinstance(suspect.end.error, CancelledError)
    assert isinstance(innocent.end.error, CancelledError)
    assert isinstance(newcomer.end, Finished)


@pytest.mark.parametrize("method", ["step", "copy"])
def test_a_step_that_always_fails_fails_its_batch_and_the_next_one_works(
    bench_of, scripted_runner, caller, monkeypatch, method
):
    bench = bench_of(scripted_runner())
    several = [caller((number,), wants_progress=True) for number in (3, 4)]
    bench.put(*several)
    with monkeypatch.context() as patched:
        patched.delattr(scripted_runner, method)
        bench.finish()
    assert all(isinstance(one.end.error, EngineError) for one in several)
    assert bench.worker.slots_in_use == 0
    after = caller((5,))
    bench.put(after)
    bench.finish()
    assert isinstance(after.end, Finished)


def test_rows_that_cannot_be_moved_for_a_newcomer_are_encoded_anew(
    bench_of, scripted_runner, caller, caplog, monkeypatch
):
    bench = bench_of(scripted_runner(max_rows=3))
    several = [caller((3, 4, 5), DecodingOptions(beam_size=1, max_output_tokens=n)) for n in (1, 6, 7)]
    bench.put(*several)
    bench.worker.step()  # the first one ends, and leaves a gap
    newcomer = caller((6,), GREEDY)
    bench.put(newcomer)
    with caplog.at_level(logging.CRITICAL, "dragoman_server"), monkeypatch.context() as patched:
        patched.delattr(scripted_runner, "copy")
        bench.worker.step()
    bench.finish()
    assert all(isinstance(one.end, Finished) for one in (*several, newcomer))
    assert bench.worker.slots_in_use == 0


def test_nan_fails_the_request_it_belongs_to(bench_of, scripted_runner, caller):
    class Broken(scripted_runner):
        def step(self, tokens, lengths, top_k):
            log_probs, ids = super().step(tokens, lengths, top_k)
            hypotheses = [
                slot for slot, length in enumerate(lengths) if length and self.memory[slot] == (13,)
            ]
            log_probs[hypotheses[-1:]] = np.nan  # one of several, the others could go on
            return log_probs, ids

    bench = bench_of(Broken())
    good, bad, other = caller((3,), GREEDY), caller((13,)), caller((4,), GREEDY)
    bench.put(good, bad, other)
    bench.finish()
    assert isinstance(bad.end.error, EngineError)
    assert isinstance(good.end, Finished)
    assert isinstance(other.end, Finished)


def test_a_network_without_any_continuation_fails_the_request(bench_of, scripted_runner, caller):
    class Mute(scripted_runner):
        def step(self, tokens, lengths, top_k):
            log_probs, ids = super().step(tokens, lengths, top_k)
            return np.full_like(log_probs, -np.inf), ids

    bench = bench_of(Mute())
    one = caller((3,))
    bench.put(one)
    bench.finish()
    assert isinstance(one.end.error, EngineError)


def test_a_caller_that_raises_is_given_up_and_harms_nobody(bench_of, endless_runner, caller):
    bench = bench_of(endless_runner())
    attempts = Counter()

    def dead(event):
        attempts[type(event)] += 1
        raise RuntimeError("event loop is closed")

    broken, healthy = caller((3,), GREEDY, wants_progress=True), caller((4,), GREEDY)
    broken.request.notify = dead
    bench.put(broken, healthy)
    bench.finish()
    assert isinstance(healthy.end, Finished)
    assert attempts[Failed] == 1
    assert bench.runner.rows[:2] == [2, 1]


def test_an_observer_that_raises_harms_nobody(bench_of, scripted_runner, caller):
    class Broken:
        def __getattr__(self, name):
            return self.fail

        def fail(self, record):
            raise RuntimeError("metrics are gone")

    bench = bench_of(scripted_runner(), observer=Broken())
    one = caller((3,))
    bench.put(one)
    bench.finish()
    assert isinstance(one.end, Finished)
