"""The export gate: the exported graphs, run as the server runs them, say what torch says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dragoman_export.behaviour import behaviour
from dragoman_export.canaries import canaries
from dragoman_export.engine_run import engine_translations
from dragoman_export.graphs import MASKED_LOGIT
from dragoman_export.options import Precision
from dragoman_export.torch_reference import TorchReference
from dragoman_server.engine.messages import DecodingOptions, Hypothesis
from dragoman_server.engine.runner import FloatArray, Runner
from dragoman_server.manifest import Gate

__all__ = ["BEAM", "FP16_TOLERANCE", "INT8_TOLERANCE", "TOLERANCE", "check"]

TOLERANCE = 1e-4
"""Largest log-probability difference that float32 explains; also what makes two tokens, or scores, a tie."""
INT8_TOLERANCE = 0.02
"""Mean log-probability that rounding to integers may cost torch's own tokens: two percent of perplexity."""
FP16_TOLERANCE = 0.001
"""The same for float16: a twentieth of what int8 may cost. Its 11 significant bits round a number by 1 part
in 2048 at most; an int8 by up to 1 part in 254 of the largest number of its row, which is more of others."""
_TOLERANCES = {"fp32": TOLERANCE, "fp16": FP16_TOLERANCE, "int8": INT8_TOLERANCE}
_COMPANY_TIES = {"fp32": TOLERANCE, "fp16": FP16_TOLERANCE, "int8": 0.0}
"""Difference of two scores that company may make: float sums depend on how many rows there are, and now and
then round to the next number; sums of integers do not."""

BEAM = DecodingOptions(beam_size=4)
"""How whole sentences are searched for."""

_SEARCHED = 16
"""Sentences that are searched with a beam: torch takes its time."""


def check(
    reference: TorchReference,
    runner_of: Callable[[int], Runner],
    sources: Sequence[Sequence[int]],
    sentence: str,
    precision: Precision = "fp32",
) -> Gate:
    """Compare the exported graphs with the checkpoint's network, step by step and in the engine's search.

    On the way of torch's greedy translations both are fed torch's tokens, so that each step is compared on
    equal terms, over the whole vocabulary. Along that path, equal choices at every step mean equal greedy
    translations. Then the engine translates the first sentences with a beam, all at once and one by one, and
    whole texts that are odd in one way each.

    fp32 has to say the same throughout, but for ties. fp16 and int8 may lose a little of what torch's tokens
    are worth, and other choices are counted, not forbidden; that company changes nothing and that every text
    is answered is asked of them as well.

    Args:
        reference: Torch, and the checkpoint.
        runner_of: Makes a runner of what is to be proved, with that many slots.
        sources: Source ids, end-of-sentence included.
        sentence: In the source language, for the odd texts.
        precision: What is proved.
    """
    checkpoint, special = reference.checkpoint, reference.checkpoint.special
    targets = [reference.greedy(source) for source in sources]
    found = _teacher_forced(runner_of(len(sources)), sources, targets, special.bos)
    differences, losses, agreeing = [], [], 0
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        expected = reference.log_probs(source)
        exported = found[row, : len(target)]
        losses.append(expected.max(axis=-1) - _of_best(expected, exported))
        differences.append(np.abs(expected - exported)[expected > MASKED_LOGIT / 2].max())
        agreeing += _same_choices(expected, exported)
    difference = float(np.max(differences))  # unlike the built-in maximum, NaN if any is
    loss = float(np.mean(np.concatenate(losses)))
    searched = sources[:_SEARCHED]
    runner = runner_of(BEAM.beam_size * len(searched))
    together, alone = (
        engine_translations(
            runner, searched, special, BEAM, at_once=at_once, first_token=reference.first_token
        )
        for at_once in (True, False)
    )
    expected_beams = [reference.search(source, BEAM)[0] for source in searched]
    beam_agreement = _agreement(expected_beams, together, tie=TOLERANCE)
    same_alone = _agreement(together, alone, tie=_COMPANY_TIES[precision])
    odd = behaviour(reference, runner, sentence, BEAM, tie=TOLERANCE)
    same = difference <= TOLERANCE and agreeing == len(sources) and beam_agreement == 1.0
    same &= set(odd.values()) == {"same"}
    good = same if precision == "fp32" else loss <= _TOLERANCES[precision]
    passed = good and same_alone == 1.0 and "failed" not in odd.values()
    return Gate(
        passed=passed,
        sentences=len(sources),
        steps=sum(map(len, targets)),
        max_log_prob_difference=difference,
        mean_log_prob_loss=loss,
        tolerance=_TOLERANCES[precision],
        greedy_agreement=agreeing / len(sources),
        beam_agreement=beam_agreement,
        same_alone=same_alone,
        behaviour=odd,
        canaries=canaries(checkpoint, runner, sources, BEAM, precision) if passed else (),
    )


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
