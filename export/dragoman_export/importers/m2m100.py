"""M2M100 (Fan et al. 2020, arXiv:2010.11125) and NLLB (arXiv:2207.04672) folders of Hugging Face.

`config.json`, `model.safetensors` or `pytorch_model.bin`, `sentencepiece.bpe.model`, and what names the
pieces: `vocab.json` and `special_tokens_map.json` for M2M100, `tokenizer.json` for NLLB. One network, many
languages: a source begins with its language's token, and a translation is made to begin with the other's.

Padding is never said: what the original does with padding that it has said is an accident of its positions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dragoman_export.importers.huggingface import (
    Weights,
    model_config,
    never_said,
    read_bytes,
    read_json,
    read_vocabulary,
    read_weights,
    refuse_unsupported,
    require_id,
    require_size,
    transformer,
)
from dragoman_export.importers.sentencepiece_model import read_pieces, renumbered, words_of
from dragoman_export.options import ExportError, ExportOptions
from dragoman_model.checkpoint import Checkpoint
from dragoman_model.transformer import Transformer
from dragoman_server.languages import LanguageTokens
from dragoman_server.special_ids import SpecialIds
from dragoman_server.tokenizer import Tokenizer

__all__ = ["read"]

_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "model_type": ("m2m_100",),
    "add_final_layer_norm": (True,),
    "normalize_before": (True,),
    "normalize_embedding": (False,),
    "tie_word_embeddings": (True,),
}
_SPM = "sentencepiece.bpe.model"
_M2M100_LANGUAGE = re.compile("__([a-z]{2,3})__")
_NLLB_LANGUAGE = re.compile("([a-z]{3}_[A-Z][a-z]{3})")
# Those of the paper's model, in the order of their ids: what its tokenizer is saved without.
_M2M100_CODES = (
    "af", "am", "ar", "ast", "az", "ba", "be", "bg", "bn", "br", "bs", "ca", "ceb", "cs", "cy", "da", "de",
    "el", "en", "es", "et", "fa", "ff", "fi", "fr", "fy", "ga", "gd", "gl", "gu", "ha", "he", "hi", "hr",
    "ht", "hu", "hy", "id", "ig", "ilo", "is", "it", "ja", "jv", "ka", "kk", "km", "kn", "ko", "lb", "lg",
    "ln", "lo", "lt", "lv", "mg", "mk", "ml", "mn", "mr", "ms", "my", "ne", "nl", "no", "ns", "oc", "or",
    "pa", "pl", "ps", "pt", "ro", "ru", "sd", "si", "sk", "sl", "so", "sq", "sr", "ss", "su", "sv", "sw",
    "ta", "th", "tl", "tn", "tr", "uk", "ur", "uz", "vi", "wo", "xh", "yi", "yo", "zh", "zu",
)  # fmt: skip
_CONTROL = ("<s>", "<pad>", "</s>", "<unk>")


def read(folder: Path, options: ExportOptions) -> Checkpoint:
    """Read an M2M100 or NLLB folder.

    Raises:
        ExportError: it asks for what is not supported here, or lacks what it needs; the message says what.
    """
    config = read_json(folder, "config.json")
    refuse_unsupported(folder, config, _SUPPORTED)
    if read_json(folder, "tokenizer_config.json", optional=True).get("legacy_behaviour"):
        raise ExportError(f"{folder / 'tokenizer_config.json'}: legacy_behaviour is not supported")
    vocabulary, languages = _pieces(folder)
    pair = _pair(languages, options)
    bos, pad, eos = (
        require_id(folder, config, f"{name}_token_id") for name in ("decoder_start", "pad", "eos")
    )
    never = {*never_said(folder, config), pad} - {eos}
    special = SpecialIds(pad, vocabulary["<unk>"], bos, eos, tuple(sorted(never)))
    control = {piece for piece, number in vocabulary.items() if number in languages.values()}
    proto = read_pieces(read_bytes(folder, _SPM), _SPM)
    lacking = [piece for piece in words_of(proto) if piece not in vocabulary]
    if lacking:
        raise ExportError(f"{folder / 'vocab.json'} lacks the piece {lacking[0]!r} of {_SPM}")
    size = require_size(folder, config, "vocab_size")
    tokenizer = Tokenizer(renumbered(proto, vocabulary, special, control, size=size, decodes=True), special)
    model = _network(folder, config)
    metadata = {"provenance": f"imported from the M2M100 model {folder.resolve().name}"}
    tokens = LanguageTokens(source=languages, forced=languages)
    return Checkpoint(model, tokenizer, tokenizer, *pair, metadata, special, tokens)


def _pieces(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Ids of all pieces by name, and of those that name a language by its code."""
    if (folder / "vocab.json").exists():
        vocabulary = read_vocabulary(folder, "vocab.json")
        named = _ids_after(len(vocabulary), _special_tokens(folder, _M2M100_LANGUAGE))
        pattern = _M2M100_LANGUAGE
    else:
        words = words_of(read_pieces(read_bytes(folder, _SPM), _SPM))
        vocabulary = {piece: number for number, piece in enumerate([*_CONTROL, *words])}
        added = read_json(folder, "tokenizer.json").get("added_tokens", [])
        named = {token["content"]: token["id"] for token in added}
        pattern = _NLLB_LANGUAGE
    languages = {
        match.group(1): number for piece, number in named.items() if (match := pattern.fullmatch(piece))
    }
    if len(languages) < 2:
        raise ExportError(f"{folder} names no languages: is it an M2M100 or NLLB model?")
    for piece in _CONTROL:
        if piece not in vocabulary:
            raise ExportError(f"{folder / 'vocab.json'} has no {piece}")
    return {**vocabulary, **{piece: named[piece] for piece in named if piece not in vocabulary}}, languages


def _special_tokens(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    """The pieces that name languages, in their order."""
    for name, key in (
        ("special_tokens_map.json", "additional_special_tokens"),
        ("tokenizer_config.json", "additional_special_tokens"),
        ("tokenizer_config.json", "extra_special_tokens"),
    ):
        tokens = read_json(folder, name, optional=True).get(key) or []
        contents = [token["content"] if isinstance(token, dict) else str(token) for token in tokens]
        if found := [content for content in contents if pattern.fullmatch(content)]:
            return found
    if read_json(folder, "tokenizer_config.json", optional=True).get("language_codes", "m2m100") == "m2m100":
        return [f"__{code}__" for code in _M2M100_CODES]
    return []


def _ids_after(first: int, pieces: Iterable[str]) -> dict[str, int]:
    return {piece: first + i for i, piece in enumerate(pieces)}


def _pair(languages: Mapping[str, int], options: ExportOptions) -> tuple[str, str]:
    """The languages that the export is checked with."""
    first, second, *_ = languages
    for flag, language in (("source", options.source_language), ("target", options.target_language)):
        if language and language not in languages:
            known = ", ".join(sorted(languages))
            raise ExportError(f"--{flag}-language {language} is unknown to the model, which has {known}")
    return options.source_language or first, options.target_language or second


def _network(folder: Path, config: Mapping[str, Any]) -> Transformer:
    weights = read_weights(folder)
    size = require_size(folder, config, "vocab_size")
    ours = model_config(
        folder,
        config,
        source_vocabulary_size=size,
        target_vocabulary_size=size,
        norm_first=True,
        scaled_embedding=config.get("scale_embedding", True),
    )
    table = _embedding(weights)
    names = ("encoder.embedding.tokens", "decoder.embedding.tokens", "decoder.output")
    positions = _positions(ours.max_positions, ours.d_model, require_id(folder, config, "pad_token_id"))
    model = transformer(ours, weights, {f"{name}.weight": table for name in names}, positions)
    weights.require_empty()
    return model


def _embedding(weights: Weights) -> Tensor:
    repeats = (
        "lm_head.weight",
        *(f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")),
        *(f"model.{side}.embed_positions.weights" for side in ("encoder", "decoder")),
    )
    weights.discard(*repeats)
    return weights.take("model.shared.weight")


def _positions(length: int, d_model: int, pad: int) -> Tensor:
    """The sinusoids of tensor2tensor, sines before cosines, which begin after the padding's position."""
    half = d_model // 2
    inverse_wavelength = torch.exp(torch.arange(half).float() * (-math.log(10000.0) / (half - 1)))
    position = torch.arange(pad + 1, pad + 1 + length).float().unsqueeze(1)  # [length, 1]
    angle = position * inverse_wavelength  # [length, half]
    return torch.cat((angle.sin(), angle.cos()), dim=1)
