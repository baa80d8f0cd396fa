"""What breaks around the worker harms only those whom it concerns."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest

from dragoman_server.engine.messages import DecodingOptions, Failed, Finished
from dragoman_server.errors import EngineError

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


@pytest.mark.parametrize("method", ["step", "copy"])
def test_a_failing_step_fails_its_batch_and_the_next_one_works(
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
