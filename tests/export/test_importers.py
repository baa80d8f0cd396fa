"""Imported models beside the original: Hugging Face's `generate` is right by definition."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
import sentencepiece
import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
)

from dragoman_export.engine_run import engine_translations
from dragoman_export.importers import read_model
from dragoman_export.options import ExportError, ExportOptions, SourceFormat
from dragoman_export.writer import export_checkpoint
from dragoman_model.checkpoint import Checkpoint, CheckpointError
from dragoman_model.reference import forced_log_probs
from dragoman_server.bundle import Bundle
from dragoman_server.engine.messages import DecodingOptions, Hypothesis
from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import load_model

INPUTS = 200
LONGEST_INPUT, LONGEST_OUTPUT = 12, 14
ROWS = 64
SOURCE_WORDS = ("the", "a", "dog", "cat", "woman", "who", "sees", "walks", "sleeps", "runs", "old")
TARGET_WORDS = ("der", "ein", "hund", "katze", "frau", "die", "sieht", "geht", "rennt", "alt")
LANGUAGES = ("en", "de", "fr")


def spm(words: Sequence[str], **options: object) -> bytes:
    generator, model = random.Random(1), io.BytesIO()
    sentences = [" ".join(generator.choices(words, k=6)) for _ in range(100)]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return model.getvalue()


def pieces(model: bytes) -> list[str]:
    """What text is made of: all but <unk>, <s>, </s>."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.IdToPiece(i) for i in range(3, processor.GetPieceSize())]


def shaken(model: Any, seed: int) -> Any:
    """The model with weights that make it say something else for every input: sharp attention."""
    embedding = 0.2 if model.config.scale_embedding else 0.8
    weight = 2.4 / model.config.d_model**0.5
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_small = name.endswith("bias") or "norm" in name
                is_embedding = name.endswith(("shared.weight", "embed_tokens.weight"))
                spread = 0.02 if is_small else embedding if is_embedding else weight
                parameter.add_(torch.randn(parameter.shape), alpha=spread)
    return model.eval()


@dataclass(frozen=True)
class Marian:
    """A MarianMT folder and what is not a dimension of it."""

    config: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    separate: bool = False
    bias: bool = False
    never_pads: bool = False
    binary: bool = False


def heads(number: int) -> dict[str, Any]:
    return {f"{side}_attention_heads": number for side in ("encoder", "decoder")}


MARIANS = {
    "swish, tied": Marian({"activation_function": "swish"}),
    "relu, 8 heads": Marian({"activation_function": "relu", **heads(8)}),
    "gelu, 16 heads": Marian({"activation_function": "gelu", "d_model": 128, **heads(16)}, never_pads=True),
    "separate vocabularies": Marian(separate=True),
    "separate vocabularies, untied": Marian({"tie_word_embeddings": False}, separate=True),
    "untied": Marian({"tie_word_embeddings": False}),
    "deep encoder, shallow decoder": Marian({"encoder_layers": 4, "decoder_layers": 1}),
    "wide encoder, narrow decoder": Marian({"encoder_ffn_dim": 160, "decoder_ffn_dim": 48}),
    "other heads on each side": Marian({"encoder_attention_heads": 8, "decoder_attention_heads": 2}),
    "unscaled embeddings": Marian({"scale_embedding": False}),
    "biased logits": Marian(bias=True),
    "several target languages": Marian(tags=("deu", "fra"), never_pads=True),
    "a pickled file of tensors": Marian(binary=True),
}


def marian_folder(folder: Path, kind: Marian, seed: int) -> Any:
    """Write the folder; returns the original."""
    source, target = spm(SOURCE_WORDS), spm(TARGET_WORDS)
    tags = [f">>{tag}<<" for tag in kind.tags]
    # Pieces that the network does not know are <unk> to it: there are some of those on Hugging Face.
    known = [piece for piece in pieces(source) if piece != "\u2581cat"]
    both = ["</s>", "<unk>", *tags, *dict.fromkeys([*known, *pieces(target)]), "<pad>"]
    sides = (["</s>", "<unk>", *known, "<pad>"], ["</s>", "<unk>", *pieces(target), "<pad>"])
    if kind.separate:
        size = max(map(len, sides))
        sides = tuple([*side[:-1], *(f"<{i}>" for i in range(size - len(side))), "<pad>"] for side in sides)
        (folder / "target_vocab.json").write_text(json.dumps(numbered(sides[1])))
    vocabulary = sides[0] if kind.separate else both
    (folder / "vocab.json").write_text(json.dumps(numbered(vocabulary)))
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))
    dimensions = {
        "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 48,
        "scale_embedding": True, "share_encoder_decoder_embeddings": not kind.separate,
    }  # fmt: skip
    pad = vocabulary.index("<pad>")
    ids = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0, "forced_eos_token_id": None}
    config = MarianConfig(vocab_size=len(vocabulary), **{**dimensions, **ids, **kind.config})
    original = shaken(MarianMTModel(config), seed)
    if kind.never_pads:
        original.generation_config.bad_words_ids = [[pad]]
        # As in trained models, it is next to impossible anyway.
        original.final_logits_bias[0, pad] = -50.0
    if kind.bias:
        original.final_logits_bias.add_(torch.randn(original.final_logits_bias.shape))
    original.save_pretrained(folder)
    if kind.binary:
        torch.save(original.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return original


def m2m100_folder(folder: Path, nllb: bool, seed: int, **changes: object) -> Any:
    """Write an M2M100 folder, or an NLLB one; returns the original."""
    model = spm((*SOURCE_WORDS, *TARGET_WORDS), model_type="bpe")
    words = ["<s>", "<pad>", "</s>", "<unk>", *pieces(model)]
    tokens = ["eng_Latn", "deu_Latn", "fra_Latn"] if nllb else [f"__{code}__" for code in LANGUAGES]
    named = {token: len(words) + i for i, token in enumerate(tokens)}
    if nllb:
        added = [{"id": number, "content": token} for token, number in named.items()]
        (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    else:
        (folder / "vocab.json").write_text(json.dumps(numbered(words)))
        (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": tokens}))
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    dimensions: dict[str, Any] = {
        "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 80,
        "encoder_attention_heads": 4, "decoder_attention_heads": 8, "max_position_embeddings": 48,
    }  # fmt: skip
    config = M2M100Config(vocab_size=len(words) + len(tokens) + 8, **{**dimensions, **changes})
    original = shaken(M2M100ForConditionalGeneration(config), seed)
    with torch.no_grad():
        # As in trained models, padding is next to impossible.
        table, bias = original.model.shared.weight, original.model.decoder.layer_norm.bias
        table[:, 0], table[1, 0], bias[0] = 0.0, -10.0, 10.0
    original.save_pretrained(folder)
    return original


def numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def random_inputs(checkpoint: Checkpoint) -> list[list[int]]:
    generator, special = random.Random(2), checkpoint.special
    control = (special.pad, special.unk, special.bos, special.eos)
    prefix = checkpoint.languages.prefix(checkpoint.direction)
    words = [i for i in range(checkpoint.config.source_vocabulary_size - 9) if i not in control]
    return [
        [*prefix, *generator.choices(words, k=generator.randint(1, LONGEST_INPUT)), special.eos]
        for _ in range(INPUTS)
    ]


def generated(original: Any, checkpoint: Checkpoint, inputs: list[list[int]], beam: int) -> list[list[int]]:
    """What `generate` says, without start, end and padding."""
    special, longest = checkpoint.special, max(map(len, inputs))
    ids = torch.tensor([[*row, *[special.pad] * (longest - len(row))] for row in inputs])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in inputs])
    options: dict[str, Any] = {"num_beams": beam, "length_penalty": 0.0, "early_stopping": beam > 1}
    if (first := checkpoint.languages.first(checkpoint.direction)) is not None:
        options["forced_bos_token_id"] = first
    rows = original.generate(
        ids, attention_mask=mask, max_new_tokens=LONGEST_OUTPUT, forced_eos_token_id=None, **options
    )
    # The start symbol may be the end symbol.
    return [until(row[1:], special.eos) for row in rows.tolist()]


def until(row: list[int], eos: int) -> list[int]:
    return row[: row.index(eos)] if eos in row else row


def said(checkpoint: Checkpoint, bundle: Bundle, beam: int, inputs: list[list[int]]) -> list[Hypothesis]:
    """What the exported graphs say in the engine."""
    found = engine_translations(
        OnnxRunner(load_model(bundle), ROWS),
        inputs,
        checkpoint.special,
        DecodingOptions(beam_size=beam, length_penalty=0.0, max_output_tokens=LONGEST_OUTPUT),
        first_token=checkpoint.languages.first(checkpoint.direction),
        at_once=True,
    )
    return [hypothesis for hypothesis in found if hypothesis is not None]


def log_prob(checkpoint: Checkpoint, source: list[int], tokens: Sequence[int], stopped: bool) -> float:
    """Of a hypothesis, by the network in torch, the forced token not counted."""
    log_probs = forced_log_probs(checkpoint.model, source, tokens, checkpoint.special)
    first = checkpoint.languages.first(checkpoint.direction)
    chosen = [*tokens, checkpoint.special.eos] if stopped else list(tokens)
    return sum(float(log_probs[i, token]) for i, token in enumerate(chosen) if i > 0 or token != first)


def require_the_same(original: Any, folder: Path, out: Path, options: ExportOptions) -> None:
    checkpoint, bundle = read_model(folder, options), export_checkpoint(folder, out, options)
    inputs = random_inputs(checkpoint)
    greedy = generated(original, checkpoint, inputs, beam=1)
    assert [list(found.tokens) for found in said(checkpoint, bundle, 1, inputs)] == greedy
    assert len({tuple(row) for row in greedy}) > INPUTS // 20, "the model says the same whatever it reads"
    theirs = generated(original, checkpoint, inputs, beam=4)
    ours = said(checkpoint, bundle, 4, inputs)
    assert len(ours) == INPUTS
    for source, mine, other in zip(inputs, ours, theirs, strict=True):
        if list(mine.tokens) != other:
            stopped = len(other) < LONGEST_OUTPUT
            assert mine.log_prob >= log_prob(checkpoint, source, other, stopped) - 1e-4


@pytest.mark.parametrize("name", MARIANS)
def test_marian_models_say_what_generate_says(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "original"
    folder.mkdir()
    original = marian_folder(folder, MARIANS[name], seed=list(MARIANS).index(name))
    require_the_same(original, folder, tmp_path / "m" / "1", ExportOptions(source_format="marian"))


@pytest.mark.parametrize("nllb", [False, True], ids=["m2m100", "nllb"])
def test_m2m100_models_say_what_generate_says(nllb: bool, tmp_path: Path) -> None:
    folder = tmp_path / "original"
    folder.mkdir()
    original = m2m100_folder(folder, nllb, seed=20 + nllb, activation_function="gelu" if nllb else "relu")
    source, target = ("eng_Latn", "fra_Latn") if nllb else ("de", "en")
    options = ExportOptions(source_format="m2m100", source_language=source, target_language=target)
    require_the_same(original, folder, tmp_path / "m" / "1", options)


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marian")
    marian_folder(folder, Marian(tags=("deu", "fra")), seed=1)
    return folder


@pytest.fixture(scope="module")
def m2m100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("m2m100")
    m2m100_folder(folder, nllb=False, seed=1)
    return folder


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("text", ["the dog sees a woman", "the cat sleeps", "  who \u00fc", ""])
def test_texts_have_the_ids_of_the_original_tokenizer(marian: Path, text: str) -> None:
    checkpoint = read_model(marian, ExportOptions(source_format="marian", target_language="fra"))
    theirs = MarianTokenizer.from_pretrained(marian)
    unknown = range(theirs.vocab_size, 1000)
    ours = [checkpoint.special.unk if i in unknown else i for i in checkpoint.source_ids(text)]
    assert ours == theirs(f">>fra<< {text}").input_ids


def test_what_the_network_does_not_know_is_unknown_to_it(marian: Path) -> None:
    checkpoint = read_model(marian, ExportOptions(source_format="marian"))
    [unknown] = [i for i in checkpoint.source_tokenizer.encode("cat") if i >= 45]
    table = checkpoint.model.encoder.embedding.tokens.weight
    assert torch.equal(table[unknown], table[checkpoint.special.unk])
    assert checkpoint.model.decoder.output.bias[unknown] < -1e8


def test_ids_have_the_text_of_the_original_tokenizer(marian: Path) -> None:
    checkpoint = read_model(marian, ExportOptions(source_format="marian"))
    ids = checkpoint.target_tokenizer.encode("der hund sieht die frau")
    deu = checkpoint.languages.target["deu"]
    assert checkpoint.target_tokenizer.decode([deu, *ids, 0]) == "der hund sieht die frau"


def test_a_tag_that_a_user_types_is_text(marian: Path) -> None:
    checkpoint = read_model(marian, ExportOptions(source_format="marian", target_language="fra"))
    tags = set(checkpoint.languages.target.values())
    assert not tags.intersection(checkpoint.source_tokenizer.encode(">>deu<< the dog </s> <pad>"))


def test_languages_have_the_ids_of_the_original_tokenizer(m2m100: Path, tmp_path: Path) -> None:
    theirs = M2M100Tokenizer(m2m100 / "vocab.json", m2m100 / "sentencepiece.bpe.model")
    theirs.save_pretrained(tmp_path)
    config = M2M100Config(
        vocab_size=theirs.get_lang_id("zu") + 9, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=8, decoder_ffn_dim=8, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    M2M100ForConditionalGeneration(config).save_pretrained(tmp_path)
    options = ExportOptions(source_format="m2m100", source_language="sv", target_language="de")
    checkpoint = read_model(tmp_path, options)
    assert len(checkpoint.source_languages) == 100
    theirs.src_lang = "sv"
    assert checkpoint.source_ids("the dog") == theirs("the dog").input_ids
    assert checkpoint.languages.first(checkpoint.direction) == theirs.get_lang_id("de")


REFUSED = {
    "activation_function": ("gelu_new", "activation_function 'gelu_new' is not supported"),
    "normalize_before": (True, "normalize_before true is not supported, only false"),
    "normalize_embedding": (True, "normalize_embedding true"),
    "add_final_layer_norm": (True, "add_final_layer_norm true"),
    "static_position_embeddings": (False, "static_position_embeddings false"),
    "model_type": ("bart", 'model_type "bart" is not supported, only "marian"'),
    "no_repeat_ngram_size": (3, "no_repeat_ngram_size 3 is not supported, only null or 0"),
    "repetition_penalty": (1.2, "repetition_penalty 1.2"),
    "forced_bos_token_id": (5, "forced_bos_token_id 5"),
    "bad_words_ids": ([[7, 8]], "bad_words_ids may name single tokens alone"),
    "eos_token_id": ([0, 1], "eos_token_id must be one token id"),
    "encoder_layers": (3, "lack model.encoder.layers.2"),
    "decoder_layers": (1, "hold model.decoder.layers.1"),
    "encoder_ffn_dim": (80, "do not have the shapes that config.json says"),
    "vocab_size": (100, "encoder.embedding.tokens.weight has 46 rows, by config.json it should have 100"),
    "d_model": ("64", "d_model must be a number of at least 1, not '64'"),
    "decoder_attention_heads": (None, "decoder_attention_heads must be a number of at least 1, not None"),
}
M2M100_REFUSED = {
    "a model of another kind": (
        "config.json",
        {"model_type": "mbart"},
        'model_type "mbart" is not supported',
    ),
    "an output of its own": ("config.json", {"tie_word_embeddings": False}, "tie_word_embeddings false"),
    "languages at the end": ("tokenizer_config.json", {"legacy_behaviour": True}, "legacy_behaviour"),
    "other languages": ("special_tokens_map.json", {"additional_special_tokens": ["__xx__"]}, "no languages"),
    "a piece without an id": ("vocab.json", {"\u2581dog": None}, "must be a number from 0 on, not None"),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_is_not_supported_is_refused(marian: Path, tmp_path: Path, setting: str) -> None:
    value, message = REFUSED[setting]
    require_refused(marian, tmp_path, {"config.json": {setting: value}}, message)


@pytest.mark.parametrize("what", M2M100_REFUSED)
def test_what_m2m100_does_not_support_is_refused(m2m100: Path, tmp_path: Path, what: str) -> None:
    name, settings, message = M2M100_REFUSED[what]
    require_refused(m2m100, tmp_path, {name: settings}, message, "m2m100")


def test_an_imported_model_is_not_saved_as_a_checkpoint(marian: Path, tmp_path: Path) -> None:
    checkpoint = read_model(marian, ExportOptions(source_format="marian"))
    with pytest.raises(CheckpointError, match="exported from the folder that it came in"):
        checkpoint.save(tmp_path / "checkpoint")


def test_a_model_that_rules_nothing_out_has_scores_in_float32_as_well(tmp_path: Path) -> None:
    folder = tmp_path / "original"
    folder.mkdir()
    marian_folder(folder, Marian(separate=True), seed=1)
    options = ExportOptions(source_format="marian", precision=("fp32", "fp16"))
    bundle = export_checkpoint(folder, tmp_path / "m" / "1", options)
    assert bundle.manifest.special_ids.never == ()
    graph = onnx.load_model_from_string(bundle.read("decode_step.fp16.onnx")).graph
    [scores] = [node.input[0] for node in graph.node if node.op_type == "LogSoftmax"]
    [maker] = [node for node in graph.node if scores in node.output]
    assert (maker.op_type, maker.attribute[0].i) == ("Cast", onnx.TensorProto.FLOAT)


def test_languages_are_named_for_imports_alone() -> None:
    with pytest.raises(ValueError, match="a checkpoint says its languages itself"):
        ExportOptions(source_language="en")


def test_a_search_that_is_steered_is_refused(marian: Path, tmp_path: Path) -> None:
    changes = {"generation_config.json": {"suppress_tokens": [9]}}
    require_refused(marian, tmp_path, changes, "suppress_tokens \\[9\\] is not supported")


def test_a_language_that_is_not_stated_is_asked_for(marian: Path, tmp_path: Path) -> None:
    changes = {"tokenizer_config.json": {"source_lang": None}}
    require_refused(marian, tmp_path, changes, "name it with --source-language")


def test_an_unknown_target_language_is_refused(marian: Path) -> None:
    with pytest.raises(ExportError, match="no target language 'spa', only deu, fra"):
        read_model(marian, ExportOptions(source_format="marian", target_language="spa"))


def test_a_pickle_of_more_than_tensors_is_not_loaded(marian: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Harmful:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return (marker.write_text, ("gotcha",))

    folder = copied(marian, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    torch.save({"model.shared.weight": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(ExportError, match="cannot be read"):
        read_model(folder, ExportOptions(source_format="marian"))
    assert not marker.exists()


def copied(original: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in original.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def require_refused(
    original: Path,
    tmp_path: Path,
    changes: dict[str, dict[str, object]],
    message: str,
    source_format: SourceFormat = "marian",
) -> None:
    folder = copied(original, tmp_path / "copy")
    for name, settings in changes.items():
        file = folder / name
        found = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(found | settings))
    with pytest.raises(ExportError, match=message):
        read_model(folder, ExportOptions(source_format=source_format))
