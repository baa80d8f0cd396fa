"""Loops end; what repeats itself because its source does, or only a little, is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.engine import DecodingOptions, Engine, FinishReason, Outcome
from dragoman_server.engine.repetition import ends_in_loop, repeats

phrases = st.lists(st.integers(3, 9), min_size=1, max_size=8)


@given(phrases, st.lists(st.integers(10, 99), max_size=9, unique=True), st.integers(0, 40))
def test_a_phrase_again_and_again_is_a_repetition(phrase, before, tokens):
    loop = (phrase * 40)[:tokens]
    assert repeats([*before, *loop], 24) >= (tokens >= max(24, 4 * len(phrase)))
    assert not repeats([*before, *loop[:15]], 24)
    assert not repeats([*before, 3, *range(200, 260)], 24)


@given(st.lists(st.integers(3, 5), min_size=1, max_size=80), st.integers(1, 30))
def test_token_by_token_says_what_the_whole_says(tokens, at_least):
    """The first prefix that ends in a loop is the first that has one."""
    prefixes = [np.array(tokens[:length], np.int32) for length in range(1, len(tokens) + 1)]
    found = [ends_in_loop(prefix, at_least) for prefix in prefixes]
    expected = [repeats(prefix.tolist(), at_least) for prefix in prefixes]
    assert any(found) == any(expected)
    if any(found):
        assert found.index(True) == expected.index(True)


@pytest.fixture(scope="session")
def looping_runner(scripted_runner):
    """A model that says 3, 4, 5 for ever, with other ideas far behind."""

    class Looping(scripted_runner):
        def step(self, tokens, lengths, top_k):
            log_probs, ids = super().step(tokens, lengths, top_k)
            ids = np.where(ids == 2, 6, ids)
            log_probs = log_probs - 50.0
            log_probs[:, 0], ids[:, 0] = -0.01, 3 + lengths % 3
            return log_probs, ids

    return Looping


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize(
    ("source", "loop_tokens", "reason", "length"),
    [
        ((7, 8, 6, 5) * 8, 24, FinishReason.LENGTH, 40),
        (tuple(range(10, 42)), 24, FinishReason.REPETITION, 24),
        (tuple(range(10, 42)), 0, FinishReason.LENGTH, 40),
    ],
    ids=["as its source", "loop", "never"],
)
def test_a_loop_is_cut(looping_runner, caller, beam_size, source, loop_tokens, reason, length):
    with Engine([looping_runner()], max_queue=9, bos_id=1, eos_id=2, loop_tokens=loop_tokens) as engine:
        several = [caller(source, DecodingOptions(beam_size=beam_size)) for _ in range(3)]
        for one in several:
            engine.submit(one.request)
        assert engine.drain(20)
        outcomes = engine.stats().totals.outcomes
    for one in several:
        best = one.end.hypotheses[0]
        assert (best.finish_reason, len(best.tokens)) == (reason, length)
    assert outcomes[Outcome(reason.value)] == 3
