"""Text to ids and back: one SentencePiece model, used alike in training and serving.

Control symbols (padding, start, end) are never produced from text: a user who types `</s>` gets the pieces
that spell it. Language knows nothing of ids beyond this module and the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sentencepiece

from dragoman_server.special_ids import SpecialIds

__all__ = ["Tokenizer"]

_OURS = SpecialIds()


class Tokenizer:
    """A SentencePiece model (Kudo & Richardson 2018, arXiv:1808.06226).

    Args:
        model: The serialised SentencePiece model, whose piece numbers are the network's ids.
        special: The ids that its control symbols must have.

    Raises:
        ValueError: `model` is no SentencePiece model, or its special ids are others.
    """

    def __init__(self, model: bytes, special: SpecialIds = _OURS) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError("the tokenizer file is no SentencePiece model") from error
        _require_special(self._processor, special)
        self._special = special

    @property
    def vocabulary_size(self) -> int:
        """Pieces, special symbols included."""
        return int(self._processor.GetPieceSize())

    def encode(self, text: str) -> list[int]:
        """The ids of one sentence, without start or end symbol; runs of white space count as one blank."""
        ids: list[int] = self._processor.EncodeAsIds(text)
        return ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many sentences at once, on as many threads as SentencePiece likes."""
        ids: list[list[int]] = self._processor.EncodeAsIds(list(texts))
        return ids

    def sample_all(self, texts: Sequence[str], alpha: float) -> list[list[int]]:
        """A random segmentation of each sentence: subword regularisation (Kudo 2018, arXiv:1804.10959).

        SentencePiece draws from a generator of its own that no seed fixes from one process to the next.

        Args:
            texts: Sentences.
            alpha: Smoothing of a unigram model's segmentations, or the dropout rate of BPE merges.
        """
        ids: list[list[int]] = self._processor.Encode(
            list(texts), out_type=int, enable_sampling=True, alpha=alpha, nbest_size=-1
        )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special symbols yield nothing, bytes that are no UTF-8 yield U+FFFD."""
        nothing = (self._special.unk, self._special.pad)
        text: str = self._processor.DecodeIds([i for i in ids if i not in nothing])
        return text


def _require_special(processor: sentencepiece.SentencePieceProcessor, special: SpecialIds) -> None:
    wanted = {"pad": special.pad, "unk": special.unk, "eos": special.eos}
    if special.bos not in (special.pad, special.eos):
        wanted["bos"] = special.bos
    found = {name: getattr(processor, f"{name}_id")() for name in wanted}
    if found != wanted:
        stated = ", ".join(f"{name} {number}" for name, number in wanted.items())
        others = ", ".join(f"{name} {number}" for name, number in found.items())
        raise ValueError(f"the tokenizer's special ids must be {stated}, not {others}")
