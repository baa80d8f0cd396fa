"""Beam search over slots against a beam search in plain Python that recomputes every history."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman_server.engine.messages import DecodingOptions, FinishReason, Hypothesis, length_penalty
from dragoman_server.engine.runner import SlotCopy
from dragoman_server.engine.search import Search, common_length

BOS, EOS = 1, 2


def reference(runner, source, options, max_length):
    """The search's definition, word for word, on full histories."""
    size = options.beam_size
    live, finished = [((), 0.0)], []

    def finish(tokens, log_prob, length, reason):
        if len(finished) < size:
            score = log_prob / length_penalty(length, options.length_penalty)
            finished.append(Hypothesis(tokens, log_prob, score, reason))

    for step in range(1, max_length + 1):
        candidates = []
        for index, (tokens, log_prob) in enumerate(live):
            runner.encode([source], [[0]])
            for position, token in enumerate((BOS, *tokens)):
                fed = np.array([token]), np.array([position])
                log_probs, ids = runner.step(*fed, min(2 * size, runner.limits.vocabulary_size))
            for rank, (token, more) in enumerate(zip(ids[0].tolist(), log_probs[0].tolist(), strict=True)):
                if more > -np.inf:
                    candidates.append((-(log_prob + more), index, rank, token))
        best = sorted(candidates)[: 2 * size]
        parents, live = live, []
        for position, (negative, index, _, token) in enumerate(best):
            tokens = parents[index][0]
            if token != EOS:
                if len(live) < size:
                    live.append(((*tokens, token), -negative))
            elif position < size:
                finish(tokens, -negative, step, FinishReason.STOP)
        if len(finished) == size:
            break
    else:
        for tokens, log_prob in live:
            finish(tokens, log_prob, max_length, FinishReason.LENGTH)
    return tuple(sorted(finished, key=lambda hypothesis: -hypothesis.score)[: options.n_best])


def start(runner, callers):
    """Encode the requests into slots side by side; returns the search and their beams."""
    search, beams, first = Search(24, 64, BOS, EOS), [], 0
    for caller in callers:
        slots = tuple(range(first, first + caller.request.options.beam_size))
        first += len(slots)
        runner.encode([caller.request.source], [slots])
        beams.append(search.start(caller.request, slots))
    return search, beams


def step(runner, search, beams):
    """Take one step of every beam that is not done."""
    for beam in beams:
        if beam.done:
            search.release(beam)
    running = [beam for beam in beams if not beam.done]
    rows = sum(beam.size for beam in beams)
    top_k = min(2 * max(beam.size for beam in running), runner.limits.vocabulary_size)
    runner.copy(search.advance(running, *runner.step(*search.inputs(rows), top_k)))


def decode(runner, callers):
    """Step all requests together until each is done; returns their beams."""
    search, beams = start(runner, callers)
    while not all(beam.done for beam in beams):
        step(runner, search, beams)
    return beams


def begun(caller, options):
    """A search of one request in the first slots, and its beam."""
    search = Search(options.beam_size, 64, BOS, EOS)
    return search, search.start(caller((5,), options).request, tuple(range(options.beam_size)))


@st.composite
def decoding_options(draw):
    beam_size = draw(st.integers(1, 6))
    return DecodingOptions(
        beam_size=beam_size,
        n_best=draw(st.integers(1, beam_size)),
        length_penalty=draw(st.sampled_from([0.0, 0.6, 1.0, 3.0])),
        max_output_tokens=draw(st.one_of(st.none(), st.integers(1, 8))),
    )


sources = st.lists(st.integers(3, 90), min_size=1, max_size=6).map(tuple)


@given(st.lists(st.tuples(sources, decoding_options()), min_size=1, max_size=4), st.integers(3, 14))
@settings(deadline=None, max_examples=60)
def test_search_equals_its_definition(scripted_runner, caller, requests, vocabulary_size):
    callers = [caller(source, options) for source, options in requests]
    runner = scripted_runner(max_rows=24, vocabulary_size=vocabulary_size)
    for one, beam in zip(callers, decode(runner, callers), strict=True):
        request = one.request
        alone = scripted_runner(max_rows=1, vocabulary_size=vocabulary_size)
        expected = reference(alone, request.source, request.options, request.max_output_tokens)
        assert beam.hypotheses == expected


@given(st.lists(sources, min_size=1, max_size=4), st.integers(2, 6))
@settings(deadline=None, max_examples=40)
def test_only_positions_that_differ_are_copied(scripted_runner, caller, several, beam_size):
    class Strict(scripted_runner):
        def copy(self, copies):
            for copy in copies:
                assert copy.start < copy.stop
                assert self.history[copy.source, copy.start] != self.history[copy.target, copy.start]
            super().copy(copies)

    runner = Strict(max_rows=24)
    decode(runner, [caller(source, DecodingOptions(beam_size=beam_size)) for source in several])
    assert runner.copied


@given(sources, decoding_options())
@settings(deadline=None, max_examples=60)
def test_settled_tokens_only_grow_and_begin_the_result(scripted_runner, caller, source, options):
    runner = scripted_runner()
    search, (beam,) = start(runner, [caller(source, options)])
    settled = []
    while not beam.done:
        settled.append(search.settled(beam))
        step(runner, search, [beam])
    settled.append(beam.hypotheses[0].tokens)
    for shorter, longer in pairwise(settled):
        assert longer[: len(shorter)] == shorter
    if options.beam_size == 1:  # nothing of greedy search is ever taken back
        assert [len(tokens) for tokens in settled[:-1]] == list(range(len(settled) - 1))


def test_greedy_takes_the_most_probable_token(caller):
    search, beam = begun(caller, DecodingOptions(beam_size=1))
    assert search.advance([beam], np.array([[-0.1, -0.2]], np.float32), np.array([[7, EOS]])) == []
    assert not beam.done
    search.advance([beam], np.array([[-0.5, -0.7]], np.float32), np.array([[EOS, 3]]))
    (best,) = beam.hypotheses
    assert best.tokens == (7,)
    assert best.finish_reason is FinishReason.STOP
    assert best.log_prob == pytest.approx(-0.6)
    assert best.score == pytest.approx(-0.6 / length_penalty(2, 0.6))


def test_end_of_sentence_behind_the_first_beam_is_ignored(caller):
    search, beam = begun(caller, DecodingOptions(beam_size=2))
    search.advance([beam], np.array([[-1, -2, -3, -4]] * 2, np.float32), np.array([[3, 4, EOS, 5]] * 2))
    assert [search.tokens(slot) for slot in search.live(beam)] == [[3], [4]]
    assert beam.hypotheses == ()


def rows(*continuations):
    """Log-probabilities and ids of rows, from (log-probability, id) pairs of each."""
    log_probs = np.array([[log_prob for log_prob, _ in row] for row in continuations], np.float32)
    return log_probs, np.array([[token for _, token in row] for row in continuations])


@pytest.mark.parametrize(("rival", "settled"), [(-1.25, ()), (-1.75, (3,))])
def test_only_hypotheses_that_can_still_win_unsettle_tokens(caller, rival, settled):
    options = DecodingOptions(beam_size=2, length_penalty=0.0)
    search, beam = begun(caller, options)
    first = [(-1.0, 3), (-1.0, 4), (-9.0, 5), (-9.0, 6)]
    search.advance([beam], *rows(first, first))
    ending = [(-0.5, EOS), (-7.0, 5), (-8.0, 6), (-9.0, 7)]
    ongoing = [(rival + 1.0, 8), (-7.5, 9), (-8.0, 6), (-9.0, 7)]
    search.advance([beam], *rows(ending, ongoing))
    assert not beam.done
    assert search.settled(beam) == settled


def test_nothing_is_copied_after_the_last_step(caller):
    search, beam = begun(caller, DecodingOptions(beam_size=2, max_output_tokens=2))
    row = [(-1.0, 3), (-1.0, 4), (-9.0, 5), (-9.0, 6)]
    assert search.advance([beam], *rows(row, row)) == [SlotCopy(0, 1, 0, 1)]
    twins = [(-1.0, 3), (-1.0, 4), (-1.0, 5), (-1.0, 6)]  # both survivors descend from the first
    assert search.advance([beam], *rows(twins, row)) == []
    assert beam.done


def test_a_beam_without_any_possible_continuation_is_done_and_empty(caller):
    search, beam = begun(caller, DecodingOptions(beam_size=2))
    search.advance([beam], np.full((2, 4), -np.inf, np.float32), np.zeros((2, 4), np.int64))
    assert beam.done
    assert beam.hypotheses == ()


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_length(first, second):
    shared = common_length(first, second)
    assert first[:shared] == second[:shared]
    assert shared in (len(first), len(second)) or first[shared] != second[shared]
