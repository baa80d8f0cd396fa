"""The export gate: the exported graphs, run as the server runs them, say what torch says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dragoman_export.graphs import MASKED_LOGIT
from dragoman_export.options import Precision
from dragoman_model.reference import beam_search, forced_log_probs
from dragoman_model.transformer import Transformer
from dragoman_server.engine.messages import FinishReason, output_limit
from dragoman_server.engine.runner import FloatArray, Runner
from dragoman_server.manifest import Gate, SpecialIds

__all__ = ["INT8_TOLERANCE", "TOLERANCE", "check", "greedy"]

TOLERANCE = 1e-4
"""Largest log-probability difference that float32 explains; also what makes two tokens a tie."""
INT8_TOLERANCE = 0.02
"""Mean log-probability that rounding to integers may cost torch's own tokens: two percent of perplexity."""


def check(
    model: Transformer,
    runner: Runner,
    sources: Sequence[Sequence[int]],
    special: SpecialIds,
    precision: Precision = "fp32",
) -> Gate:
    """Compare `runner` with `model` on every step of torch's greedy translations.

    Both are fed torch's tokens, so that each step is compared on equal terms, over the whole vocabulary.
    Along that path, equal choices at every step mean equal greedy translations. fp32 has to say the same;
    int8 may lose a little of what torch's tokens are worth, and other choices are counted, not forbidden.

    Args:
        model: The reference, in evaluation mode.
        runner: What is to be proved; has a slot for every source.
        sources: Source ids, end-of-sentence included.
        special: Ids of the control symbols.
        precision: What is proved.
    """
    targets = [greedy(model, source, special.eos) for source in sources]
    found = _teacher_forced(runner, sources, targets, special.bos)
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
    same = difference <= TOLERANCE and agreeing == len(sources)
    return Gate(
        passed=same if precision == "fp32" else loss <= INT8_TOLERANCE,
        sentences=len(sources),
        steps=sum(map(len, targets)),
        max_log_prob_difference=difference,
        mean_log_prob_loss=loss,
        tolerance=TOLERANCE if precision == "fp32" else INT8_TOLERANCE,
        greedy_agreement=agreeing / len(sources),
    )


def greedy(model: Transformer, source: Sequence[int], eos: int) -> list[int]:
    """Torch's greedy translation, with its end-of-sentence where there is one."""
    bound = min(output_limit(len(source)), model.config.max_positions)
    best = beam_search(model, source, beam_size=1, max_output_tokens=bound)[0]
    return [*best.tokens, eos] if best.finish_reason is FinishReason.STOP else list(best.tokens)


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
