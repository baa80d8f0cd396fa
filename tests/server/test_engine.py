"""The engine with its threads: acceptance, refusal, cancellation, draining, closing."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dragoman_server.engine import DecodingOptions, Engine, Failed, Finished, Outcome, Progress
from dragoman_server.errors import (
    CancelledError,
    DeadlineError,
    DeadlineUnreachableError,
    InvalidRequestError,
    QueueFullError,
    ShuttingDownError,
    StalledError,
)

BOS, EOS = 1, 2
PATIENCE = 20.0
GREEDY = DecodingOptions(beam_size=1)


def engine_of(*runners, max_queue=1000, **options):
    return Engine(runners, max_queue=max_queue, bos_id=BOS, eos_id=EOS, **options)


def wait_until_refusing(engine, caller):
    """Until another thread's `close` or `drain` has taken effect."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            engine.submit(caller((5,)).request)
        except ShuttingDownError:
            return
        time.sleep(0.005)
    pytest.fail("the engine still accepts requests")


@pytest.fixture(scope="session")
def gated_runner(scripted_runner):
    """A runner whose steps wait until its gate is open."""

    class Gated(scripted_runner):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.gate = threading.Event()
            self.stepping = threading.Event()

        def step(self, tokens, lengths, top_k):
            self.stepping.set()
            assert self.gate.wait(PATIENCE)
            return super().step(tokens, lengths, top_k)

    return Gated


def test_two_workers_give_what_one_gives(scripted_runner, caller):
    shuffled = random.Random(1)
    several = [
        (
            tuple(shuffled.choices(range(3, 90), k=shuffled.randint(1, 20))),
            DecodingOptions(beam_size=shuffled.randint(1, 5)),
        )
        for _ in range(60)
    ]
    results = []
    for runners in ([scripted_runner()], [scripted_runner(), scripted_runner()]):
        callers = [caller(*one) for one in several]
        with engine_of(*runners) as engine:
            for one in callers:
                engine.submit(one.request)
            assert engine.drain(PATIENCE)
        results.append([one.end.hypotheses for one in callers])
    assert results[0] == results[1]


def test_nothing_is_left_after_random_cancellations_and_deadlines(scripted_runner, caller):
    callers, refused, chance = [], [], random.Random(2)
    engine = engine_of(scripted_runner(), scripted_runner())

    def call(number):
        options = DecodingOptions(beam_size=1 + number % 4)
        deadline = time.monotonic() + chance.uniform(0, 0.02) if number % 6 == 0 else None
        one = caller((3 + number % 90, 5), options, deadline=deadline, wants_progress=number % 2 == 0)
        try:
            engine.submit(one.request)
        except DeadlineUnreachableError:
            refused.append(one)
            return
        callers.append(one)
        if number % 6 == 1:
            time.sleep(chance.uniform(0, 0.01))
            engine.cancel(one.request)

    with engine, ThreadPoolExecutor(4) as threads:
        list(threads.map(call, range(300)))
        assert engine.drain(PATIENCE)
        stats = engine.stats()
        assert (stats.waiting, stats.unanswered, stats.slots_in_use) == (0, 0, 0)
    assert len(callers) == sum(stats.totals.outcomes.values()) == 300 - len(refused)
    assert stats.totals.refused == len(refused)
    kinds = (CancelledError, DeadlineError, DeadlineUnreachableError)
    for one in callers:
        assert isinstance(one.end, Finished) or isinstance(one.end.error, kinds)
    for kind, outcome in zip(kinds, (Outcome.CANCELLED, Outcome.DEADLINE, Outcome.REFUSED), strict=True):
        ended = sum(isinstance(one.end, Failed) and isinstance(one.end.error, kind) for one in callers)
        assert stats.totals.outcomes[outcome] == ended


def test_exactly_the_excess_is_refused(gated_runner, caller):
    runner = gated_runner(max_rows=4)
    callers = [caller((3,)) for _ in range(11)]
    with engine_of(runner, max_queue=5) as engine:
        engine.submit(callers[0].request)
        assert runner.stepping.wait(PATIENCE)
        for one in callers[1:6]:
            engine.submit(one.request)
        for one in callers[6:]:
            with pytest.raises(QueueFullError) as refusal:
                engine.submit(one.request)
            assert refusal.value.retry_after_seconds > 0
        assert (engine.stats().waiting, engine.stats().slots_in_use) == (5, 4)
        runner.gate.set()
        assert engine.drain(PATIENCE)
        assert engine.stats().totals.refused == 5
    assert [isinstance(one.end, Finished) for one in callers[:6]] == [True] * 6
    assert not any(one.events for one in callers[6:])


@pytest.mark.parametrize(
    ("source", "beam_size", "field"), [((), 4, "source"), ((3,) * 65, 4, "source"), ((3,), 9, "beam_size")]
)
def test_what_cannot_fit_is_refused_by_its_field(scripted_runner, caller, source, beam_size, field):
    with engine_of(scripted_runner(max_rows=16), scripted_runner(max_rows=8)) as engine:
        with pytest.raises(InvalidRequestError) as refusal:
            engine.submit(caller(source, DecodingOptions(beam_size=beam_size)).request)
        assert refusal.value.field == field
        assert engine.stats().unanswered == 0


def test_what_needs_more_memory_than_there_is_is_refused(scripted_runner, caller):
    with engine_of(scripted_runner(max_cells=2 * (10 + 20))) as engine:
        for beam_size, length, fits in ((2, 10, True), (3, 10, False), (2, 11, False)):
            options = DecodingOptions(beam_size=beam_size, max_output_tokens=20)
            one = caller((3,) * length, options)
            if fits:
                engine.submit(one.request)
                continue
            with pytest.raises(InvalidRequestError, match="more memory") as refusal:
                engine.submit(one.request)
            assert refusal.value.field == "beam_size"
        assert engine.drain(PATIENCE)


@pytest.mark.parametrize(
    ("source_tokens", "asked", "expected"), [(5, None, 30), (64, None, 40), (5, 7, 7), (64, 1000, 40)]
)
def test_the_output_is_bounded_by_source_model_and_option(
    scripted_runner, caller, source_tokens, asked, expected
):
    one = caller((3,) * source_tokens, DecodingOptions(max_output_tokens=asked))
    with engine_of(scripted_runner(max_target=40)) as engine:
        engine.submit(one.request)
        assert engine.drain(PATIENCE)
    assert one.request.max_output_tokens == expected


def test_a_request_expires_while_it_waits_behind_a_full_batch(scripted_runner, caller):
    class Slow(scripted_runner):
        def step(self, tokens, lengths, top_k):
            time.sleep(0.01)
            log_probs, ids = super().step(tokens, lengths, top_k)
            return log_probs, ids.clip(min=EOS + 1)  # never ends a sentence

    runner = Slow(max_rows=4, max_target=140)
    with engine_of(runner) as engine:
        engine.submit(caller((3,) * 60).request)
        told = threading.Event()
        late = caller((4,), deadline=time.monotonic() + 0.05)
        late.request.notify = lambda event: (late.events.append(event), told.set())
        engine.submit(late.request)
        assert told.wait(PATIENCE)
    assert isinstance(late.end.error, DeadlineError)
    assert runner.encoded == [[(3,) * 60]]


def test_drain_finishes_what_was_accepted_and_refuses_more(gated_runner, caller):
    runner = gated_runner(max_rows=4)
    decoding, waiting = caller((3,)), caller((4,))
    with engine_of(runner) as engine:
        engine.submit(decoding.request)
        engine.submit(waiting.request)
        assert not engine.drain(0.01)
        with pytest.raises(ShuttingDownError):
            engine.submit(caller((5,)).request)
        runner.gate.set()
        assert engine.drain(PATIENCE)
    assert isinstance(decoding.end, Finished)
    assert isinstance(waiting.end, Finished)


def test_close_fails_what_is_left(gated_runner, caller):
    runner = gated_runner(max_rows=4)
    decoding, waiting = caller((3,) * 9, DecodingOptions(max_output_tokens=30)), caller((4,))
    engine = engine_of(runner)
    engine.submit(decoding.request)
    assert runner.stepping.wait(PATIENCE)
    engine.submit(waiting.request)
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait_until_refusing(engine, caller)
    runner.gate.set()
    closing.join(PATIENCE)
    engine.close()
    for one in (decoding, waiting):
        assert isinstance(one.end.error, ShuttingDownError)
    assert engine.stats().unanswered == engine.stats().slots_in_use == 0
    assert engine.stats().totals.outcomes[Outcome.SHUTDOWN] >= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dragoman-decode")]


def test_cancelling_twice_or_afterwards_changes_nothing(scripted_runner, caller):
    one = caller((3,))
    with engine_of(scripted_runner()) as engine:
        engine.submit(one.request)
        assert engine.drain(PATIENCE)
        engine.cancel(one.request)
        engine.cancel(one.request)
    assert isinstance(one.end, Finished)
    assert engine.stats().totals.outcomes[Outcome.CANCELLED] == 0


def test_progress_comes_only_when_asked_for(scripted_runner, caller):
    quiet, curious = caller((3,), GREEDY), caller((3,), GREEDY, wants_progress=True)
    with engine_of(scripted_runner()) as engine:
        engine.submit(quiet.request)
        engine.submit(curious.request)
        assert engine.drain(PATIENCE)
    assert not quiet.progress
    best = curious.end.hypotheses[0].tokens
    assert [event for event in curious.events if isinstance(event, Progress)]
    assert curious.progress[-1] == best[: len(curious.progress[-1])]


def test_totals_and_the_observer_agree(scripted_runner, caller):
    class Recorder:
        def __init__(self):
            self.encodes, self.steps, self.ends = [], [], []

        def on_encode(self, record):
            self.encodes.append(record)

        def on_step(self, record):
            self.steps.append(record)

        def on_finished(self, record):
            self.ends.append(record)

    seen, callers = Recorder(), [caller((3,) * length) for length in (2, 5, 30)]
    with engine_of(scripted_runner(max_rows=12), observer=seen) as engine:
        for one in callers:
            engine.submit(one.request)
        assert engine.drain(PATIENCE)
        totals = engine.stats().totals
    assert totals.encoder_batches == len(seen.encodes)
    assert totals.encoder_tokens == sum(record.tokens for record in seen.encodes) == 37
    assert totals.encoder_padding == sum(record.padding for record in seen.encodes)
    assert totals.steps == len(seen.steps)
    assert totals.rows == sum(record.rows for record in seen.steps)
    assert totals.padded_rows == sum(record.padded_rows for record in seen.steps) > 0
    assert totals.output_tokens == sum(len(one.end.hypotheses[0].tokens) for one in callers)
    assert sorted(record.source_tokens for record in seen.ends) == [2, 5, 30]
    assert all(record.timing is not None for record in seen.ends)


def test_an_engine_needs_a_runner():
    with pytest.raises(ValueError, match="runner"):
        engine_of()


def wait_until(condition, what):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.005)


def test_what_a_stalled_worker_holds_fails_and_it_may_come_back(gated_runner, caller):
    runner = gated_runner(max_rows=4)
    with engine_of(runner, stall_seconds=0.05) as engine:
        decoding, waiting = caller((3,)), caller((4,))
        engine.submit(decoding.request)
        assert runner.stepping.wait(PATIENCE)
        engine.submit(waiting.request)
        engine.check()
        assert not decoding.events
        time.sleep(0.1)
        engine.check()
        assert isinstance(decoding.end.error, StalledError)
        assert isinstance(waiting.end.error, StalledError)
        assert engine.stats().stalled_workers == 1
        with pytest.raises(StalledError):
            engine.submit(caller((5,)).request)
        runner.gate.set()
        wait_until(lambda: engine.stats().slots_in_use == 0, "the worker does not come back")
        engine.check()
        assert engine.stats().stalled_workers == 0
        after = caller((5,))
        engine.submit(after.request)
        assert engine.drain(PATIENCE)
        assert isinstance(after.end, Finished)
    assert len(decoding.events) == 1


def test_what_a_stalled_worker_does_not_hold_is_left_to_the_other(gated_runner, scripted_runner, caller):
    stuck = gated_runner(max_rows=4)
    with engine_of(stuck, scripted_runner(max_rows=4), stall_seconds=0.05) as engine:
        several = []
        while not stuck.stepping.is_set():
            several.append(caller((3 + len(several) % 9,)))
            engine.submit(several[-1].request)
            time.sleep(0.01)
        time.sleep(0.1)
        engine.check()
        assert engine.stats().stalled_workers == 1
        several.append(caller((4,)))
        engine.submit(several[-1].request)
        wait_until(lambda: all(one.events for one in several), "somebody waits")
        lost = [one for one in several if isinstance(one.end, Failed)]
        assert 1 <= len(lost) <= 4
        assert all(isinstance(one.end.error, StalledError) for one in lost)
        assert isinstance(several[-1].end, Finished)
        stuck.gate.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_leaves_nobody_waiting(scripted_runner, caller):
    class Dying(scripted_runner):
        def step(self, tokens, lengths, top_k):
            raise SystemExit

    with engine_of(Dying(), stall_seconds=60.0) as engine:
        one = caller((3,))
        engine.submit(one.request)
        engine._threads[0].join(PATIENCE)
        engine.check()
        assert isinstance(one.end.error, StalledError)
        with pytest.raises(StalledError):
            engine.submit(caller((4,)).request)


def test_closing_does_not_wait_for_a_stalled_worker(gated_runner, caller):
    runner = gated_runner()
    engine = engine_of(runner, stall_seconds=0.05)
    engine.submit(caller((3,)).request)
    assert runner.stepping.wait(PATIENCE)
    engine.close()
    runner.gate.set()
    engine._threads[0].join(PATIENCE)
