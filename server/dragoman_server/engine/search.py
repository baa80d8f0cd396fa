"""Greedy and beam search over slots: a beam of one is greedy search.

Selection is that of the usual beam search with the GNMT length penalty (Wu et al. 2016, arXiv:1609.08144,
section 7): each step ranks the `2 * beam_size` best continuations of a beam. An end-of-sentence among the
first `beam_size` of them finishes a hypothesis; the others make up the next live hypotheses. Twice the beam
is enough: each live hypothesis offers end-of-sentence once, so `beam_size` others always remain.

Hypotheses live in arrays with one row a slot, and a step advances all beams of one size at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_server.engine.messages import FinishReason, Hypothesis, Request, length_penalty
from dragoman_server.engine.repetition import ends_in_loop, repeats
from dragoman_server.engine.runner import FloatArray, IntArray, SlotCopy

__all__ = ["Beam", "Search", "common_length"]

_Slots = NDArray[np.intp]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    shared = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        shared += 1
    return shared


class Beam:
    """One request's search: the slots of its hypotheses and what is finished of them.

    Args:
        request: Its `max_output_tokens` is set.
        slots: `beam_size` of them.
    """

    def __init__(self, request: Request, slots: tuple[int, ...]) -> None:
        self.size = request.options.beam_size
        self.max_length = request.max_output_tokens
        self.first_token = request.first_token
        self.slots = slots
        """Those of the live hypotheses, best first, then the others."""
        self.ended = False
        """Whether no hypothesis is to be continued."""
        self._options = request.options
        self._request = request
        self._finished: list[Hypothesis] = []

    @property
    def done(self) -> bool:
        """Whether no further step is needed."""
        return self.ended or len(self._finished) == self.size

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """The `n_best` finished hypotheses, best first."""
        # The sort is stable: of equal scores the one that finished first wins.
        ranked = sorted(self._finished, key=lambda hypothesis: -hypothesis.score)
        return tuple(ranked[: self._options.n_best])

    def may_loop(self, at_least: int) -> bool:
        """Whether it was asked for, or the source repeats itself, too, over half as many tokens."""
        return self._request.may_loop or repeats(self._request.source, at_least // 2)

    def finish(self, tokens: Sequence[int], log_prob: float, reason: FinishReason) -> None:
        """Add a finished hypothesis, given without its end-of-sentence; one too many is dropped."""
        if len(self._finished) == self.size:
            return
        length = len(tokens) + (reason is FinishReason.STOP)  # the end-of-sentence token counts
        score = log_prob / length_penalty(length, self._options.length_penalty)
        self._finished.append(Hypothesis(tuple(tokens), log_prob, score, reason))

    def can_win(self, log_prob: float) -> bool:
        """Whether a live hypothesis may still come to score best of all."""
        best = max((hypothesis.score for hypothesis in self._finished), default=-np.inf)
        # A log-probability only falls, and the penalty is largest at the bound: no score can pass this.
        return log_prob / length_penalty(self.max_length, self._options.length_penalty) > best


@dataclass(frozen=True, slots=True)
class _Selection:
    """The next hypotheses of beams of one size: `[beams, size]` each, best first."""

    alive: NDArray[np.bool_]
    """False where a beam has fewer."""
    parents: NDArray[np.intp]
    """Ranks of the hypotheses that are continued."""
    tokens: IntArray
    log_probs: NDArray[np.float64]


class Search:
    """The hypotheses of all slots, and how they are extended.

    Before step t of a request (counted from 0) every live hypothesis has t tokens, and its slot has been fed
    t tokens: the start token and all but the last of its own.

    Args:
        slots: How many there are.
        max_length: The longest output, end-of-sentence included.
        bos_id: The token that starts every output.
        eos_id: The token that finishes a hypothesis.
        loop_tokens: Tokens over which a hypothesis that repeats one phrase is a loop, unless its source does
            the like; where the best of a beam is one, the beam ends. 0 for never.
    """

    def __init__(self, slots: int, max_length: int, bos_id: int, eos_id: int, loop_tokens: int = 0) -> None:
        self._bos_id = bos_id
        self._eos_id = eos_id
        self._tokens = np.zeros((slots, max_length), np.int32)
        self._lengths = np.zeros(slots, np.int64)
        """Tokens of each live hypothesis, and 0 without one."""
        self._next = np.zeros(slots, np.int64)
        self._log_probs = np.full(slots, -np.inf)
        """Of each live hypothesis; without one, minus infinity."""
        self._loop_tokens = loop_tokens
        self._constrained: list[Beam] = []
        """Those whose next token, the first, is given."""

    def start(self, request: Request, slots: tuple[int, ...]) -> Beam:
        """Begin a request in `slots`, which are encoded and have an empty history."""
        self._next[slots[0]] = self._bos_id
        self._log_probs[slots[0]] = 0.0
        beam = Beam(request, slots)
        if beam.first_token is not None:
            self._constrained.append(beam)
        return beam

    def release(self, beam: Beam) -> None:
        """Forget a request; its slots are idle."""
        self._clear(list(beam.slots))
        if beam in self._constrained:
            self._constrained.remove(beam)

    def inputs(self, rows: int) -> tuple[IntArray, IntArray]:
        """The token to feed to each of the first slots, and its position; `[rows]` both.

        Slots without a hypothesis get token 0 at position 0; nobody reads what comes of them.
        """
        return self._next[:rows], self._lengths[:rows]

    def longest(self) -> int:
        """Tokens of the longest live hypothesis."""
        return max(self._lengths.tolist())

    def idle(self, rows: int) -> int:
        """How many of the first slots have no live hypothesis."""
        return rows - int(np.count_nonzero(self._log_probs[:rows] > -np.inf))

    def live(self, beam: Beam) -> list[int]:
        """The slots of a beam's live hypotheses, best first."""
        return [slot for slot in beam.slots if self._log_probs[slot] > -np.inf]

    def tokens(self, slot: int) -> list[int]:
        """The output of a slot's hypothesis so far."""
        return self._tokens[slot, : self._lengths[slot]].tolist()  # type: ignore[no-any-return]

    def settled(self, beam: Beam) -> tuple[int, ...]:
        """The tokens that every hypothesis begins with that can still become the best."""
        contenders = [
            tuple(self.tokens(slot)) for slot in self.live(beam) if beam.can_win(float(self._log_probs[slot]))
        ]
        contenders += [hypothesis.tokens for hypothesis in beam.hypotheses[:1]]
        first, last = min(contenders), max(contenders)
        return first[: common_length(first, last)]

    def relocate(self, beams: Iterable[Beam], moves: Mapping[int, int]) -> list[SlotCopy]:
        """Move slots, old number to new; returns the copies that carry the runner's state over."""
        if not moves:
            return []
        copies = []
        for beam in beams:
            moved = [slot for slot in beam.slots if slot in moves]
            # The longest history of a beam: those without a hypothesis are never read.
            stop = int(self._lengths[list(beam.slots)].max())
            copies += [SlotCopy(slot, moves[slot], 0, stop, with_memory=True) for slot in moved]
            if moved:
                beam.slots = tuple(moves.get(slot, slot) for slot in beam.slots)
        old, new = list(moves.keys()), list(moves.values())
        for array in (self._tokens, self._lengths, self._next, self._log_probs):
            array[new] = array[old]
        self._clear(old)
        return copies

    def advance(self, beams: Sequence[Beam], log_probs: FloatArray, token_ids: IntArray) -> list[SlotCopy]:
        """Take one step of every beam.

        Args:
            beams: Those whose rows were stepped; none of them done.
            log_probs: `[rows, k]`, of the continuations of each row, descending.
            token_ids: `[rows, k]`; k is at least twice the largest `beam_size`, or the whole vocabulary.

        Returns:
            The copies to make before the next step; no slot is both a source and a target.
        """
        if self._constrained:
            log_probs, token_ids = self._with_first_tokens(log_probs, token_ids)
        groups: dict[int, list[Beam]] = {}
        for beam in beams:
            groups.setdefault(beam.size, []).append(beam)
        copies: list[SlotCopy] = []
        for size, group in groups.items():
            if size == 1:
                self._advance_greedy(group, log_probs, token_ids)
            else:
                copies += self._advance_beams(group, log_probs[:, : 2 * size], token_ids[:, : 2 * size])
        return copies

    def _with_first_tokens(self, log_probs: FloatArray, token_ids: IntArray) -> tuple[FloatArray, IntArray]:
        """The continuations, with one alone, a certain one, where it is given."""
        log_probs, token_ids = log_probs.copy(), token_ids.copy()
        rows = [beam.slots[0] for beam in self._constrained]
        log_probs[rows] = -np.inf
        log_probs[rows, 0] = 0.0
        token_ids[rows, 0] = np.array([beam.first_token for beam in self._constrained])
        self._constrained.clear()
        return log_probs, token_ids

    def _advance_greedy(self, group: Sequence[Beam], log_probs: FloatArray, token_ids: IntArray) -> None:
        """Append the best continuation of each row; `log_probs` and `token_ids` are `[rows, k]`.

        Number by number: between two steps the network drives numpy's code out of the processor's caches,
        and to fetch it again takes longer than to go through the rows.
        """
        best, ids = log_probs[:, 0].tolist(), token_ids[:, 0].tolist()
        for beam in group:
            [slot] = beam.slots
            token, total = ids[slot], self._log_probs.item(slot) + best[slot]
            if total == -math.inf:
                beam.ended = True
                continue
            if token == self._eos_id:
                beam.ended = True
                beam.finish(self.tokens(slot), total, FinishReason.STOP)
                continue
            length = self._lengths.item(slot) + 1
            self._tokens[slot, length - 1] = self._next[slot] = token
            self._lengths[slot], self._log_probs[slot] = length, total
            at_end = length == beam.max_length or self._is_loop(slot)
            if at_end and (reason := self._cut(beam, length)):
                beam.ended = True
                beam.finish(self.tokens(slot), total, reason)

    def _advance_beams(
        self, group: Sequence[Beam], log_probs: FloatArray, token_ids: IntArray
    ) -> list[SlotCopy]:
        """Extend beams of one size; `log_probs` and `token_ids` are `[rows, 2 * size]`."""
        slots = np.array([beam.slots for beam in group])  # [beams, size]
        lengths = self._lengths[slots[:, 0]]  # [beams]: the best hypothesis is a live one
        selection = self._select(group, slots, log_probs, token_ids)
        old_slots = slots[_rows(slots), selection.parents]
        new_slots, is_copy = _placed(slots, old_slots, selection)
        histories = self._histories_to_copy(lengths, old_slots, new_slots, is_copy)
        alive = selection.alive
        self._lengths[new_slots] = lengths[:, None]
        self._append(new_slots[alive], selection.tokens[alive], selection.log_probs[alive])
        self._clear(new_slots[~alive])
        for beam, placed in zip(group, new_slots.tolist(), strict=True):
            beam.slots = tuple(placed)
        self._end(group, lengths + 1, alive)
        return [copy for beam, copy in histories if not group[beam].done]

    def _select(
        self, group: Sequence[Beam], slots: _Slots, log_probs: FloatArray, token_ids: IntArray
    ) -> _Selection:
        """Rank the continuations, finish those that end among the best, and keep the best of the others."""
        count, size = slots.shape
        width = log_probs.shape[1]
        # [beams, size, width], then [beams, size * width]
        totals: NDArray[np.float64] = self._log_probs[slots][:, :, None] + log_probs[slots]
        totals = totals.reshape(count, size * width)
        # Stable: ties go to the earlier hypothesis, then to the earlier continuation.
        order = np.argsort(-totals, axis=1, kind="stable")[:, : 2 * size]
        each = _rows(slots)
        best: NDArray[np.float64] = totals[each, order]
        tokens = token_ids[slots].reshape(count, size * width)[each, order]
        parents = order // width
        possible, ends = best > -np.inf, tokens == self._eos_id
        for beam, rank in np.argwhere(ends[:, :size] & possible[:, :size]).tolist():
            output = self.tokens(int(slots[beam, parents[beam, rank]]))
            group[beam].finish(output, float(best[beam, rank]), FinishReason.STOP)
        goes_on = possible & ~ends
        chosen = np.argsort(~goes_on, axis=1, kind="stable")[:, :size]
        return _Selection(
            alive=goes_on[each, chosen],
            parents=parents[each, chosen],
            tokens=tokens[each, chosen],
            log_probs=best[each, chosen],
        )

    def _histories_to_copy(
        self, lengths: IntArray, sources: _Slots, targets: _Slots, is_copy: NDArray[np.bool_]
    ) -> list[tuple[int, SlotCopy]]:
        """Copy the tokens of hypotheses that get another slot; the runner's copies, with their beams.

        Hypotheses of one beam that begin alike descend from one hypothesis, whose history both slots hold.
        """
        beams, ranks = np.nonzero(is_copy)
        if not len(beams):
            return []
        source, target, length = sources[beams, ranks], targets[beams, ranks], lengths[beams]
        longest = int(length.max())
        ours, theirs = self._tokens[source, :longest], self._tokens[target, :longest]  # [copies, longest]
        differ = (ours != theirs) | (np.arange(longest) >= length[:, None])
        shared = np.where(differ.any(axis=1), differ.argmax(axis=1), longest) if longest else length
        # Position 0 is the start token's, which is not among the output tokens.
        start = np.where(self._log_probs[target] > -np.inf, 1 + shared, 0)
        self._tokens[target, :longest] = ours
        copies = map(SlotCopy, source.tolist(), target.tolist(), start.tolist(), (length + 1).tolist())
        return list(zip(beams.tolist(), copies, strict=True))

    def _end(self, group: Sequence[Beam], lengths: IntArray, alive: NDArray[np.bool_]) -> None:
        """Cut the hypotheses of beams that are too long or in a loop, and stop beams without any."""
        bounds = np.array([beam.max_length for beam in group])
        loops = np.array([self._is_loop(beam.slots[0]) for beam in group])
        for index in np.nonzero((lengths == bounds) | ~alive[:, 0] | loops)[0].tolist():
            beam, live = group[index], self.live(group[index])
            if not live:
                beam.ended = True
            elif reason := self._cut(beam, int(lengths[index])):
                for slot in live:
                    beam.finish(self.tokens(slot), float(self._log_probs[slot]), reason)
                beam.ended = True

    def _cut(self, beam: Beam, length: int) -> FinishReason | None:
        """Why a beam ends whose best hypothesis, so long, is too long or a loop; `None`: it goes on."""
        if length == beam.max_length:
            return FinishReason.LENGTH
        return None if beam.may_loop(self._loop_tokens) else FinishReason.REPETITION

    def _is_loop(self, slot: int) -> bool:
        """Whether a slot's hypothesis has come to repeat itself."""
        if not self._loop_tokens:
            return False
        return ends_in_loop(self._tokens[slot, : self._lengths.item(slot)], self._loop_tokens)

    def _append(self, slots: _Slots, tokens: IntArray, log_probs: NDArray[np.float64]) -> None:
        lengths = self._lengths[slots]
        self._tokens[slots, lengths] = tokens
        self._lengths[slots] = lengths + 1
        self._next[slots] = tokens
        self._log_probs[slots] = log_probs

    def _clear(self, slots: Sequence[int] | _Slots) -> None:
        self._lengths[slots] = 0
        self._next[slots] = 0
        self._log_probs[slots] = -np.inf


def _rows(array: NDArray[Any]) -> NDArray[np.intp]:
    """`[rows, 1]`, to index each row of `array` with its own columns; `take_along_axis` takes longer."""
    return np.arange(len(array))[:, None]


@functools.cache
def _elder(size: int) -> NDArray[np.bool_]:
    """`[size, size]`: whether the second of two ranks comes before the first."""
    return np.tril(np.ones((size, size), np.bool_), -1)


def _placed(slots: _Slots, old: _Slots, selection: _Selection) -> tuple[_Slots, NDArray[np.bool_]]:
    """Give every child a slot: the first of a parent keeps the parent's, the others take those of the dead.

    Args:
        slots: `[beams, size]`, the hypotheses' so far.
        old: `[beams, size]`, those of the children's parents.
        selection: The children.

    Returns:
        The children's slots `[beams, size]`, all of the beam's among them, and which children have to be
        copied there.
    """
    size = slots.shape[1]
    alive, parents = selection.alive, selection.parents
    siblings = (parents[:, :, None] == parents[:, None, :]) & alive[:, None, :]  # [beams, child, other child]
    stays = alive & ~(siblings & _elder(size)).any(axis=2)
    kept = ((np.arange(size)[:, None] == parents[:, None, :]) & alive[:, None, :]).any(axis=2)
    each = _rows(slots)
    vacant = slots[each, np.argsort(kept, axis=1, kind="stable")]
    turn = np.maximum(np.cumsum(~stays, axis=1) - 1, 0)
    return np.where(stays, old, vacant[each, turn]), alive & ~stays
