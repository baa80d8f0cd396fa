"""The reference decoder against exhaustive search and against itself."""

import itertools

import pytest
import torch

from dragoman_model.config import ModelConfig
from dragoman_model.reference import beam_search, forced_log_probs
from dragoman_model.transformer import Transformer
from dragoman_server.engine.messages import FinishReason, length_penalty

SOURCE = [5, 6, 4, 3]


def model(vocabulary: int, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    config = ModelConfig(
        source_vocabulary_size=vocabulary,
        target_vocabulary_size=vocabulary,
        d_model=32,
        num_heads=4,
        d_ff=48,
        encoder_layers=1,
        decoder_layers=2,
    )
    network = Transformer(config).eval()
    for parameter in network.parameters():
        parameter.data *= 1.5  # more decided than a fresh model
    return network


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_cached_search_equals_uncached_search(beam_size: int, seed: int) -> None:
    network = model(20, seed)
    options = {"beam_size": beam_size, "max_output_tokens": 12, "alpha": 0.6}
    cached, uncached = (beam_search(network, SOURCE, cached=flag, **options) for flag in (True, False))
    assert [hypothesis.tokens for hypothesis in cached] == [hypothesis.tokens for hypothesis in uncached]
    assert [h.log_prob for h in cached] == pytest.approx([h.log_prob for h in uncached], abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 3, 5])
def test_log_probs_are_those_of_teacher_forcing(beam_size: int) -> None:
    network = model(20)
    for hypothesis in beam_search(network, SOURCE, beam_size=beam_size, max_output_tokens=9, alpha=0.6):
        stopped = hypothesis.finish_reason is FinishReason.STOP
        table = forced_log_probs(network, SOURCE, hypothesis.tokens)
        produced = [*hypothesis.tokens, 3] if stopped else list(hypothesis.tokens)
        total = sum(float(table[position, token]) for position, token in enumerate(produced))
        assert hypothesis.log_prob == pytest.approx(total, abs=1e-4)
        assert hypothesis.score == pytest.approx(total / length_penalty(len(produced), 0.6), abs=1e-4)


def test_greedy_takes_the_most_likely_token() -> None:
    network = model(20)
    (hypothesis,) = beam_search(network, SOURCE, beam_size=1, max_output_tokens=9)
    table = forced_log_probs(network, SOURCE, hypothesis.tokens)
    assert list(hypothesis.tokens) == table.argmax(dim=1).tolist()[: len(hypothesis.tokens)]


def test_a_beam_as_wide_as_the_space_finds_the_best_translation() -> None:
    network = model(7)  # 4 special symbols, 3 words
    words = [1, 4, 5, 6]
    scores = {}
    for length in range(3):
        for tokens in itertools.product(words, repeat=length):
            table = forced_log_probs(network, SOURCE, tokens)
            scores[tokens] = sum(float(table[i, token]) for i, token in enumerate([*tokens, 3]))
    found = beam_search(network, SOURCE, beam_size=100, max_output_tokens=3)
    stopped = [h for h in found if h.finish_reason is FinishReason.STOP]
    best = max(scores, key=scores.__getitem__)
    assert stopped[0].tokens == best
    assert stopped[0].log_prob == pytest.approx(scores[best], abs=1e-4)


def test_the_bound_cuts_and_says_so() -> None:
    network = model(20)
    network.decoder.embedding.tokens.weight.data[3] = -10 * network.decoder.embedding.tokens.weight.data[
        4:
    ].mean(0)
    found = beam_search(network, SOURCE, beam_size=3, max_output_tokens=5)
    assert any(hypothesis.finish_reason is FinishReason.LENGTH for hypothesis in found)
    assert all(len(hypothesis.tokens) <= 5 for hypothesis in found)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
