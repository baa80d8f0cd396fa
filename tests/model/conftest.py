"""A corpus of a few sentences, and tokenizers trained on it."""

from pathlib import Path

import pytest

from dragoman_model.augment import AugmentOptions
from dragoman_model.corpus import ParallelCorpus
from dragoman_model.vocabulary import VocabularyOptions, train_tokenizers
from dragoman_server.tokenizer import Tokenizer

WORDS = [
    ("one", "eins"),
    ("two", "zwei"),
    ("three", "drei"),
    ("four", "vier"),
    ("five", "fünf"),
    ("six", "sechs"),
]


@pytest.fixture(scope="session")
def counting_corpus(tmp_path_factory: pytest.TempPathFactory) -> ParallelCorpus:
    """216 pairs: three number words each."""
    folder = tmp_path_factory.mktemp("counting")
    triples = [(a, b, c) for a in WORDS for b in WORDS for c in WORDS]
    for side, name in enumerate(("train.en", "train.de")):
        lines = [" ".join(word[side] for word in triple) + "." for triple in triples]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ParallelCorpus((Path(folder / "train.en"), Path(folder / "train.de")))


@pytest.fixture(scope="session")
def counting_tokenizers(counting_corpus: ParallelCorpus) -> tuple[Tokenizer, Tokenizer]:
    """One tokenizer for both sides."""
    return train_tokenizers(counting_corpus, VocabularyOptions(vocabulary_size=320), AugmentOptions(), seed=1)
