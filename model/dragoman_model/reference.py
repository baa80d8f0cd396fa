"""Greedy and beam search in plain torch, one sentence at a time: the oracle for every faster decoder.

The search is that of the serving engine, written a second time and as simply as possible, so that the two
can be compared token by token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dragoman_model.transformer import DecoderState, Transformer
from dragoman_server.engine.messages import FinishReason, Hypothesis, length_penalty
from dragoman_server.special_ids import SpecialIds

__all__ = ["beam_search", "forced_log_probs", "next_log_probs"]

_FORBIDDEN = -1e9  # added to the scores of symbols that no translation contains
_OURS = SpecialIds()


def next_log_probs(logits: Tensor, special: SpecialIds = _OURS) -> Tensor:
    """Log-probabilities `[..., vocabulary]`, float32; padding and start symbol are ruled out."""
    bias = torch.zeros(logits.size(-1), device=logits.device)
    bias[list(special.never)] = _FORBIDDEN
    return (logits.float() + bias).log_softmax(dim=-1)


@torch.inference_mode()
def forced_log_probs(
    model: Transformer, source: Sequence[int], target: Sequence[int], special: SpecialIds = _OURS
) -> Tensor:
    """What the model expects after each prefix of a given target (teacher forcing), in one uncached pass.

    Args:
        model: In evaluation mode.
        source: Source ids, end symbol included.
        target: Target ids without start or end symbol.
        special: Ids of the control symbols.

    Returns:
        `[len(target) + 1, vocabulary]`.
    """
    logits = model(_row(source), torch.tensor([len(source)]), _row([special.bos, *target]))
    return next_log_probs(logits[0], special)


@torch.inference_mode()
def beam_search(
    model: Transformer,
    source: Sequence[int],
    *,
    beam_size: int,
    max_output_tokens: int,
    alpha: float = 0.0,
    cached: bool = True,
    special: SpecialIds = _OURS,
    first_token: int | None = None,
) -> list[Hypothesis]:
    """Find the best translations of one sentence; a `beam_size` of 1 is greedy search.

    Of all continuations of all live hypotheses, the best `2 * beam_size` are looked at in order. An end
    symbol among the first `beam_size` finishes its hypothesis; the others keep the beam full. The search
    ends once `beam_size` hypotheses are finished, or at the bound, where the live ones are cut.

    Args:
        model: In evaluation mode.
        source: Source ids, end symbol included.
        beam_size: Hypotheses kept per step.
        max_output_tokens: Bound on output tokens, the end symbol included.
        alpha: Of the GNMT length penalty.
        cached: Decode token by token from the state; otherwise from the whole prefix anew at every step.
        special: Ids of the control symbols.
        first_token: What every translation has to begin with, at no cost to its log-probability.

    Returns:
        The finished hypotheses, best score first.
    """
    start = model.start(model.encode(_row(source), torch.tensor([len(source)])))
    state = start
    live: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[Hypothesis] = []
    for length in range(1, max_output_tokens + 1):
        inputs = [[special.bos, *tokens] for tokens, _ in live]
        if cached:
            logits, state = model.decode(torch.tensor([row[-1:] for row in inputs]), state)
        else:
            whole = start.select(torch.zeros(len(inputs), dtype=torch.long))
            logits, _ = model.decode(torch.tensor(inputs), whole)
        log_probs = next_log_probs(logits[:, -1], special)
        if length == 1 and first_token is not None:
            log_probs = torch.full_like(log_probs, -math.inf)
            log_probs[:, first_token] = 0.0
        parents, live = _advance(log_probs, live, finished, beam_size, alpha, length, special.eos)
        if len(finished) == beam_size or not live:
            break
        state = _follow(state, parents) if cached else state
    penalty = length_penalty(max_output_tokens, alpha)
    for tokens, log_prob in live[: beam_size - len(finished)]:
        finished.append(Hypothesis(tuple(tokens), log_prob, log_prob / penalty, FinishReason.LENGTH))
    return sorted(finished, key=lambda hypothesis: -hypothesis.score)


def _advance(
    log_probs: Tensor,
    live: list[tuple[list[int], float]],
    finished: list[Hypothesis],
    beam_size: int,
    alpha: float,
    length: int,
    eos: int,
) -> tuple[list[int], list[tuple[list[int], float]]]:
    """One step of the search: appends to `finished`; returns the new live hypotheses and their parents."""
    values, ids = log_probs.topk(min(2 * beam_size, log_probs.size(1)), dim=1)
    candidates = [
        (live[row][1] + value, row, token)
        for row, (row_values, row_ids) in enumerate(zip(values.tolist(), ids.tolist(), strict=True))
        for value, token in zip(row_values, row_ids, strict=True)
        if value > -math.inf
    ]
    candidates.sort(key=lambda candidate: -candidate[0])  # stable: ties stay in order of row and rank
    parents: list[int] = []
    survivors: list[tuple[list[int], float]] = []
    for rank, (log_prob, row, token) in enumerate(candidates[: 2 * beam_size]):
        if token == eos:
            if rank < beam_size and len(finished) < beam_size:
                score = log_prob / length_penalty(length, alpha)
                finished.append(Hypothesis(tuple(live[row][0]), log_prob, score, FinishReason.STOP))
        elif len(survivors) < beam_size:
            parents.append(row)
            survivors.append(([*live[row][0], token], log_prob))
    return parents, survivors


def _follow(state: DecoderState, parents: list[int]) -> DecoderState:
    return state.select(torch.tensor(parents))


def _row(ids: Sequence[int]) -> Tensor:
    return torch.tensor([list(ids)])
