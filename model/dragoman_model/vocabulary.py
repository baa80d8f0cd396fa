"""Trains the SentencePiece tokenizers of a model from its corpus."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import sentencepiece

from dragoman_model.augment import AugmentOptions, augmented
from dragoman_model.corpus import CorpusError, CorpusReport, ParallelCorpus
from dragoman_server.special_ids import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from dragoman_server.tokenizer import Tokenizer

__all__ = ["VocabularyOptions", "train_tokenizers"]


@dataclass(frozen=True, slots=True)
class VocabularyOptions:
    """How text is cut into pieces."""

    vocabulary_size: int = 8000
    """Pieces of each tokenizer, special symbols and the 256 bytes included."""
    shared_vocabulary: bool = True
    """One tokenizer for both languages instead of one each."""
    pieces: Literal["bpe", "unigram"] = "bpe"
    tokenizer_sentences: int = 2_000_000
    """Sentences sampled from a corpus larger than that."""


def train_tokenizers(
    corpus: ParallelCorpus, options: VocabularyOptions, augment: AugmentOptions, seed: int
) -> tuple[Tokenizer, Tokenizer]:
    """Train the source and the target tokenizer; one and the same where the vocabulary is shared.

    Raises:
        CorpusError: the corpus is empty, or has too little text for that many pieces.
    """

    def sides(*indices: int) -> Iterator[str]:
        for pair in augmented(corpus.pairs(CorpusReport()), augment, seed):
            for i in indices:
                yield pair[i]

    if options.shared_vocabulary:
        tokenizer = _train(sides(0, 1), options)
        return tokenizer, tokenizer
    return _train(sides(0), options), _train(sides(1), options)


def _train(sentences: Iterable[str], options: VocabularyOptions) -> Tokenizer:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=options.pieces,
            vocab_size=options.vocabulary_size,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            character_coverage=0.9999,
            byte_fallback=True,  # any text survives: what is not in the vocabulary is spelled in bytes
            input_sentence_size=options.tokenizer_sentences,
            shuffle_input_sentence=True,
            train_extremely_large_corpus=False,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise CorpusError(_reason(error, options.vocabulary_size)) from error
    return Tokenizer(model.getvalue())


def _reason(error: RuntimeError, size: int) -> str:
    text = str(error)
    if "too high" in text or "too small" in text or "too large" in text or "required_chars" in text:
        limit = re.search(r"value (<=|>=) (\d+)", text)
        fit = f" to a value {limit[1]} {limit[2]}" if limit else ""
        return f"the corpus does not support {size} pieces: change --vocabulary-size{fit}"
    return f"no tokenizer could be trained: is the corpus empty? ({text.strip()})"
