"""The export gate: the exported graphs, run as the server runs them, say what torch says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dragoman_export.behaviour import behaviour
from dragoman_export.canaries import canaries
from dragoman_export.engine_run import engine_translations
from dragoman_export.graphs import MASKED_LOGIT
from dragoman_export.options import Precision
from dragoman_model.checkpoint import Checkpoint
from dragoman_model.reference import beam_search, forced_log_probs
from dragoman_model.transformer import Transformer
from dragoman_server.engine.messages import DecodingOptions, FinishReason, Hypothesis, output_limit
from dragoman_server.engine.runner import FloatArray, Runner
from dragoman_server.manifest import Gate, SpecialIds

__all__ = ["BEAM", "INT8_TOLERANCE", "TOLERANCE", "check", "greedy"]

TOLERANCE = 1e-4
"""Largest log-probability difference that float32 explains; also what makes two tokens, or scores, a tie."""
INT8_TOLERANCE = 0.02
"""Mean log-probability that rounding to integers may cost torch's own tokens: two percent of perplexity."""

BEAM = DecodingOptions(beam_size=4)
"""How whole sentences are searched for."""

_SEARCHED = 16
"""Sentences that are searched with a beam: torch takes its time."""


def check(
    checkpoint: Checkpoint,
    runner_of: Callable[[int], Runner],
    sources: Sequence[Sequence[int]],
    sentence: str,
    special: SpecialIds,
    precision: Precision = "fp32",
) -> Gate:
    """Compare the exported graphs with the checkpoint's network, step by step and in the engine's search.

    On the way of torch's greedy translations both are fed torch's tokens, so that each step is compared on
    equal terms, over the whole vocabulary. Along that path, equal choices at every step mean equal greedy
    translations. Then the engine translates the first sentences with a beam, all at once and one by one, and
    whole texts that are odd in one way each.

    fp32 has to say the same throughout, but for ties. int8 may lose a little of what torch's tokens are
    worth, and other choices are counted, not forbidden; that company changes nothing and that every text is
    answered is asked of it as well.

    Args:
        checkpoint: The reference.
        runner_of: Makes a runner of what is to be proved, with that many slots.
        sources: Source ids, end-of-sentence included.
        sentence: In the source language, for the odd texts.
        special: Ids of the control symbols.
        precision: What is proved.
    """
    model = checkpoint.model
    targets = [greedy(model, source, special.eos) for source in sources]
    found = _teacher_forced(runner_of(len(sources)), sources, targets, special.bos)
    differences, losses, agreeing = [], [], 0
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        # The last output's successor is not compared: nothing follows an end-of-sentence.
        expected = forced_log_probs(model, source, target[:-1]).numpy()
        exported = found[row, : len(target)]
        losses.append(expected.max(axis=-1) - _of_best(expected, exported))
        differences.append(np.abs(expected - exported)[expected > MASKED_LOGIT / 2].max())
        agreeing += _same_choices(expected, exported)
    difference = float(np.max(differences))  # unlike the built-in maximum, NaN if any is
    loss = float(np.mean(np.concatenate(losses)))
    searched = sources[:_SEARCHED]
    runner = runner_of(BEAM.beam_size * len(searched))
    together, alone = (
        engine_translations(runner, searched, special, BEAM, at_once=at_once) for at_once in (True, False)
    )
    beam_agreement = _agreement([_beam(model, source) for source in searched], together, tie=TOLERANCE)
    same_alone = _agreement(together, alone, tie=TOLERANCE if precision == "fp32" else 0.0)
    odd = behaviour(checkpoint, runner, sentence, special, BEAM, tie=TOLERANCE)
    same = difference <= TOLERANCE and agreeing == len(sources) and beam_agreement == 1.0
    same &= set(odd.values()) == {"same"}
    good = same if precision == "fp32" else loss <= INT8_TOLERANCE
    passed = good and same_alone == 1.0 and "failed" not in odd.values()
    return Gate(
        passed=passed,
        sentences=len(sources),
        steps=sum(map(len, targets)),
        max_log_prob_difference=difference,
        mean_log_prob_loss=loss,
        tolerance=TOLERANCE if precision == "fp32" else INT8_TOLERANCE,
        greedy_agreement=agreeing / len(sources),
        beam_agreement=beam_agreement,
        same_alone=same_alone,
        behaviour=odd,
        canaries=canaries(checkpoint, runner, sources, special, BEAM, precision) if passed else (),
    )


def greedy(model: Transformer, source: Sequence[int], eos: int) -> list[int]:
    """Torch's greedy translation, with its end-of-sentence where there is one."""
    best = beam_search(model, source, beam_size=1, max_output_tokens=_bound(model, source))[0]
    return [*best.tokens, eos] if best.finish_reason is FinishReason.STOP else list(best.tokens)


def _beam(model: Transformer, source: Sequence[int]) -> Hypothesis:
    """Torch's translation with a beam."""
    return beam_search(
        model,
        source,
        beam_size=BEAM.beam_size,
        max_output_tokens=_bound(model, source),
        alpha=BEAM.length_penalty,
    )[0]


def _bound(model: Transformer, source: Sequence[int]) -> int:
    return min(output_limit(len(source)), model.config.max_positions)


def _agreement(
    expected: Sequence[Hypothesis | None], found: Sequence[Hypothesis | None], tie: float
) -> float:
    """Share of equal translations; those whose scores differ by no more than `tie` count as equal."""
    agreeing = 0
    for one, other in zip(expected, found, strict=True):
        if one is not None and other is not None:
            agreeing += one.tokens == other.tokens or abs(one.score - other.score) <= tie
    return agreeing / len(expected)


def _of_best(expected: FloatArray, exported: FloatArray) -> FloatArray:
    """What the runner gives the tokens that are best to the reference; `[steps]`."""
    best = expected.argmax(axis=-1)[:, None]
    return np.take_along_axis(exported, best, axis=-1)[:, 0]


def _same_choices(expected: FloatArray, exported: FloatArray) -> bool:
    """Whether every step's best token is the same, or as good to the reference within the tolerance."""
    chosen = np.take_along_axis(expected, exported.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    return bool((expected.max(axis=-1) - chosen <= TOLERANCE).all())


def _teacher_forced(
    runner: Runner, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], bos: int
) -> FloatArray:
    """The runner's log-probabilities `[sources, steps, vocabulary]` on the way along `targets`."""
    runner.encode(sources, [[row] for row in range(len(sources))])
    steps, vocabulary = max(map(len, targets)), runner.limits.vocabulary_size
    found = np.zeros((len(sources), steps, vocabulary), np.float32)
    fed = np.full(len(sources), bos, np.int64)
    for step in range(steps):
        log_prob, ids = runner.step(fed, np.full(len(sources), step), vocabulary)
        np.put_along_axis(found[:, step], ids, log_prob, axis=-1)
        fed = np.array([target[min(step, len(target) - 1)] for target in targets])
    return found
