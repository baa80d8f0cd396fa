from __future__ import annotations

import io
import unicodedata

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.special_ids import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from dragoman_server.tokenizer import Tokenizer

CONTROL = {PAD_ID, BOS_ID, EOS_ID}
CONTROL_CHARACTERS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))


def train(**options: object) -> bytes:
    nouns = ["dog", "cat", "house", "caf\u00e9", "r\u00f6\u00dfle", "A", "B"]
    lines = [
        f"The {a} sees the {b} {verb} the {c}."
        for a in nouns
        for b in nouns
        for c in nouns
        for verb in ("near", "\u00fcber")
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=330,
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
        **{"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "hard_vocab_limit": False, **options},
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return train()


@pytest.fixture(scope="module")
def tokenizer(model: bytes) -> Tokenizer:
    return Tokenizer(model)


def test_every_piece_of_the_vocabulary_can_be_typed(tokenizer: Tokenizer, model: bytes) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for identifier in range(tokenizer.vocabulary_size):
        piece = processor.IdToPiece(identifier)
        for text in (piece, f"A {piece} B", f"A{piece}B"):
            ids = tokenizer.encode(text)
            assert not CONTROL & set(ids)
            assert UNK_ID not in ids
            assert tokenizer.decode(ids).replace(" ", "") == text.replace("\u2581", "").replace(" ", "")


@pytest.mark.parametrize("symbol", ["<pad>", "<unk>", "<s>", "</s>", "<0x41>", "<2de>", "<mask>"])
def test_control_symbols_stay_text(tokenizer: Tokenizer, symbol: str) -> None:
    ids = tokenizer.encode(f"A {symbol} B")
    assert not {*CONTROL, UNK_ID} & set(ids)
    assert tokenizer.decode(ids) == f"A {symbol} B"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_encodes_without_control_symbols(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not {*CONTROL, UNK_ID} & set(ids)
    assert tokenizer.encode_all([text, "A"]) == [ids, tokenizer.encode("A")]
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


@given(st.lists(st.integers(0, 280), max_size=30))
def test_what_a_prefix_decodes_to_is_a_prefix(tokenizer: Tokenizer, ids: list[int]) -> None:
    whole = tokenizer.decode(ids)
    for end in range(len(ids)):
        assert whole.startswith(tokenizer.decode(ids[:end]).rstrip("\ufffd"))


def test_composed_and_decomposed_text_agree(tokenizer: Tokenizer) -> None:
    text = "The caf\u00e9 and the R\u00f6\u00dfle: \u00c5ngstr\u00f6m, \ud55c\uae00"
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert tokenizer.encode(composed) == tokenizer.encode(decomposed)


@pytest.mark.parametrize("text", ["\U0001f600", "\U0001f469\u200d\U0001f680", "\U00020000", "\U0010fffd"])
def test_rare_characters_survive(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(f"A {text} B")) == f"A {text} B"


def test_control_characters_are_harmless(tokenizer: Tokenizer) -> None:
    for char in CONTROL_CHARACTERS:
        decoded = tokenizer.decode(tokenizer.encode(f"A{char}B"))
        assert decoded.startswith("A")
        assert decoded.endswith("B")


def test_special_ids_decode_to_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The dog sees")
    assert tokenizer.decode([BOS_ID, PAD_ID, *ids, UNK_ID, EOS_ID, PAD_ID]) == "The dog sees"


def test_sampling_keeps_the_text(tokenizer: Tokenizer) -> None:
    texts = ["The dog sees the caf\u00e9."] * 20
    sampled = tokenizer.sample_all(texts, alpha=0.3)
    assert {tokenizer.decode(ids) for ids in sampled} == {texts[0]}
    assert len({tuple(ids) for ids in sampled}) > 1


def test_other_files_are_refused(model: bytes) -> None:
    for content in (b"", b"no model", model[: len(model) // 2]):
        with pytest.raises(ValueError, match="no SentencePiece model"):
            Tokenizer(content)


def test_other_special_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="must be pad 0, unk 1, eos 3, bos 2, not pad 3"):
        Tokenizer(train(pad_id=3, eos_id=0))
