"""Greedy and beam search over slots: a beam of one is greedy search.

Selection is that of the usual beam search with the GNMT length penalty (Wu et al. 2016, arXiv:1609.08144,
section 7): each step ranks the `2 * beam_size` best continuations of a beam. An end-of-sentence among the
first `beam_size` of them finishes a hypothesis; the others make up the next live hypotheses. Twice the beam
is enough: each live hypothesis offers end-of-sentence once, so `beam_size` others always remain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dragoman_server.engine.messages import FinishReason, Hypothesis, Request, length_penalty
from dragoman_server.engine.runner import FloatArray, IntArray, SlotCopy

__all__ = ["Beam", "Candidate", "advance", "common_length"]

Candidate = tuple[int, int, float]
"""Index of the live hypothesis that is continued, the token, and the log-probability of both together."""


@dataclass(slots=True)
class _Live:
    """A hypothesis that is still being extended."""

    slot: int
    tokens: tuple[int, ...]
    log_prob: float


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    shared = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        shared += 1
    return shared


class Beam:
    """The hypotheses of one request and the slots that hold their histories.

    Before step t (counted from 0) every live hypothesis has t tokens, and its slot has been fed t tokens:
    the start token and all but the last of its own.

    Args:
        request: Its `max_output_tokens` is set.
        slots: `beam_size` of them, encoded and with an empty history.
    """

    def __init__(self, request: Request, slots: tuple[int, ...]) -> None:
        self.size = request.options.beam_size
        self.slots = slots
        self.length = 0
        """Steps taken: the tokens of every live hypothesis."""
        self.live = [_Live(slots[0], (), 0.0)]
        self._options = request.options
        self._max_length = request.max_output_tokens
        self._finished: list[Hypothesis] = []

    @property
    def done(self) -> bool:
        """Whether no further step is needed."""
        return not self.live or len(self._finished) == self.size

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """The `n_best` finished hypotheses, best first."""
        # The sort is stable: of equal scores the one that finished first wins.
        ranked = sorted(self._finished, key=lambda hypothesis: -hypothesis.score)
        return tuple(ranked[: self._options.n_best])

    @property
    def settled(self) -> tuple[int, ...]:
        """The tokens that every hypothesis begins with that can still become the best."""
        best = max((hypothesis.score for hypothesis in self._finished), default=-np.inf)
        # A log-probability only falls, and the penalty is largest at the bound: no score can pass this.
        ceiling = length_penalty(self._max_length, self._options.length_penalty)
        contenders = [live.tokens for live in self.live if live.log_prob / ceiling > best]
        contenders += [hypothesis.tokens for hypothesis in self.hypotheses[:1]]
        first, last = min(contenders), max(contenders)
        return first[: common_length(first, last)]

    def extend(self, candidates: Iterable[Candidate], eos_id: int) -> list[SlotCopy]:
        """Take one step.

        Args:
            candidates: The `2 * beam_size` best continuations, best first.
            eos_id: The token that finishes a hypothesis.

        Returns:
            The copies to make before the next step.
        """
        survivors: list[tuple[_Live, int, float]] = []
        for position, (parent, token, log_prob) in enumerate(candidates):
            if token != eos_id:
                survivors.append((self.live[parent], token, log_prob))
            elif position < self.size:
                self._finish(self.live[parent].tokens, log_prob, FinishReason.STOP)
            if len(survivors) == self.size:
                break
        copies = self._place(survivors)
        if self.length == self._max_length:
            for live in self.live:
                self._finish(live.tokens, live.log_prob, FinishReason.LENGTH)
            self.live = []
        return [] if self.done else copies

    def relocate(self, moves: Mapping[int, int]) -> list[SlotCopy]:
        """Move slots, old number to new; returns the copies that carry their content over."""
        moved = [slot for slot in self.slots if slot in moves]
        if not moved:
            return []
        self.slots = tuple(moves.get(slot, slot) for slot in self.slots)
        for live in self.live:
            live.slot = moves.get(live.slot, live.slot)
        return [SlotCopy(slot, moves[slot], 0, self.length, with_memory=True) for slot in moved]

    def _finish(self, tokens: tuple[int, ...], log_prob: float, reason: FinishReason) -> None:
        if len(self._finished) == self.size:
            return
        length = len(tokens) + (reason is FinishReason.STOP)  # the end-of-sentence token counts
        score = log_prob / length_penalty(length, self._options.length_penalty)
        self._finished.append(Hypothesis(tokens, log_prob, score, reason))

    def _place(self, survivors: Sequence[tuple[_Live, int, float]]) -> list[SlotCopy]:
        """Give every survivor a slot: the first child its parent's, further ones those of the dead."""
        histories = {live.slot: live.tokens for live in self.live}
        kept = {parent.slot for parent, _, _ in survivors}
        vacant = [slot for slot in reversed(self.slots) if slot not in kept]
        self.length += 1
        children: list[_Live] = []
        copies: list[SlotCopy] = []
        for parent, token, log_prob in survivors:
            slot = parent.slot
            if slot in kept:
                kept.remove(slot)
            else:
                slot = vacant.pop()
                start = _shared_positions(parent.tokens, histories.get(slot))
                copies.append(SlotCopy(parent.slot, slot, start, self.length))
            children.append(_Live(slot, (*parent.tokens, token), log_prob))
        self.live = children
        return copies


def _shared_positions(tokens: tuple[int, ...], other: tuple[int, ...] | None) -> int:
    """Positions at which two slots of a beam hold the same history; `None`: a slot without a hypothesis.

    Hypotheses of one beam that begin alike descend from one hypothesis, whose history both slots hold.
    """
    # Position 0 is the start token's, which is not among the output tokens.
    return 0 if other is None else 1 + common_length(tokens, other)


def advance(beams: Sequence[Beam], log_probs: FloatArray, token_ids: IntArray, eos_id: int) -> list[SlotCopy]:
    """Take one step of every beam.

    Args:
        beams: Those whose rows were stepped.
        log_probs: `[rows, k]`, of the continuations of each row, descending.
        token_ids: `[rows, k]`; k is at least twice the largest `beam_size`, or the whole vocabulary.
        eos_id: The token that finishes a hypothesis.

    Returns:
        The copies to make before the next step; no slot is both a source and a target.
    """
    groups: dict[int, list[Beam]] = {}
    for beam in beams:
        groups.setdefault(beam.size, []).append(beam)
    copies: list[SlotCopy] = []
    for size, group in groups.items():
        ranked = _rank(group, log_probs[:, : 2 * size], token_ids[:, : 2 * size])
        for beam, candidates in zip(group, ranked, strict=True):
            copies += beam.extend(candidates, eos_id)
    return copies


def _rank(group: Sequence[Beam], log_probs: FloatArray, token_ids: IntArray) -> list[list[Candidate]]:
    """The `2 * size` best candidates of each of a group of beams of one size, best first."""
    count, size, width = len(group), group[0].size, log_probs.shape[1]
    rows = np.zeros((count, size), dtype=np.int64)
    so_far: NDArray[np.float64] = np.full((count, size), -np.inf)
    for index, beam in enumerate(group):
        rows[index, : len(beam.live)] = [live.slot for live in beam.live]
        so_far[index, : len(beam.live)] = [live.log_prob for live in beam.live]
    totals = (so_far[:, :, None] + log_probs[rows]).reshape(count, size * width)  # [beams, hypothesis * k]
    # Stable: ties go to the earlier hypothesis, then to the earlier continuation.
    order = np.argsort(-totals, axis=1, kind="stable")[:, : 2 * size]
    best = np.take_along_axis(totals, order, axis=1)
    tokens = np.take_along_axis(token_ids[rows].reshape(count, size * width), order, axis=1)
    parents = order // width
    return [
        [candidate for candidate in zip(*columns, strict=True) if candidate[2] > -np.inf]
        for columns in zip(parents.tolist(), tokens.tolist(), best.tolist(), strict=True)
    ]
