"""What torch says of a checkpoint, computed once and remembered: every precision is compared with it."""

from __future__ import annotations

from collections.abc import Sequence

from dragoman_model.checkpoint import Checkpoint
from dragoman_model.reference import beam_search, forced_log_probs
from dragoman_server.engine.messages import DecodingOptions, FinishReason, Hypothesis, output_limit
from dragoman_server.engine.runner import FloatArray

__all__ = ["TorchReference"]

_GREEDY = DecodingOptions(beam_size=1, length_penalty=0.0)


class TorchReference:
    """The oracle of one export.

    Args:
        checkpoint: Whose network it asks.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._found: dict[tuple[tuple[int, ...], DecodingOptions], tuple[Hypothesis, ...]] = {}
        self._log_probs: dict[tuple[int, ...], FloatArray] = {}

    @property
    def first_token(self) -> int | None:
        """What every translation has to begin with, in the languages that the export is checked with."""
        return self.checkpoint.languages.first(self.checkpoint.direction)

    def search(self, source: Sequence[int], options: DecodingOptions) -> tuple[Hypothesis, ...]:
        """The best translations of source ids, end-of-sentence included, `n_best` of them."""
        key = (tuple(source), options)
        if key not in self._found:
            found = beam_search(
                self.checkpoint.model,
                source,
                beam_size=options.beam_size,
                max_output_tokens=min(output_limit(len(source)), self.checkpoint.config.max_positions),
                alpha=options.length_penalty,
                special=self.checkpoint.special,
                first_token=self.first_token,
            )
            self._found[key] = tuple(found[: options.n_best])
        return self._found[key]

    def greedy(self, source: Sequence[int]) -> list[int]:
        """The greedy translation, with its end-of-sentence where there is one."""
        [best] = self.search(source, _GREEDY)
        stopped = best.finish_reason is FinishReason.STOP
        return [*best.tokens, self.checkpoint.special.eos] if stopped else list(best.tokens)

    def log_probs(self, source: Sequence[int]) -> FloatArray:
        """What is expected at every step of the greedy translation, `[steps, vocabulary]`.

        Nothing follows an end-of-sentence: its successor is not among them.
        """
        key = tuple(source)
        if key not in self._log_probs:
            checkpoint, target = self.checkpoint, self.greedy(source)
            expected = forced_log_probs(checkpoint.model, source, target[:-1], checkpoint.special)
            self._log_probs[key] = expected.numpy()
        return self._log_probs[key]
