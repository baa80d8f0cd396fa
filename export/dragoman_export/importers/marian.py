"""MarianMT folders of Hugging Face, such as the OPUS-MT models (Tiedemann & Thottingal 2020).

`config.json`, `model.safetensors` or `pytorch_model.bin`, `source.spm`, `target.spm`, `vocab.json` (and
`target_vocab.json` where the sides have vocabularies of their own). A model of several target languages has
pieces such as `>>fra<<`, with which a source begins.

Of `generate`, what a request decides is left to it: beam, length penalty, longest output. Its end-of-sentence
forced at the longest output is not: such an output says that it was cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
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
from dragoman_model.transformer import Transformer, sinusoids
from dragoman_server.languages import LanguageTokens
from dragoman_server.special_ids import SpecialIds
from dragoman_server.tokenizer import Tokenizer

__all__ = ["read"]

_TAG = re.compile(">>(.+)<<")
_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "model_type": ("marian",),
    "add_bias_logits": (False,),
    "add_final_layer_norm": (False,),
    "forced_bos_token_id": (None,),
    "normalize_before": (False,),
    "normalize_embedding": (False,),
    "static_position_embeddings": (True,),
}
_NEVER = -1e9  # a logit
_SHARED = "model.shared.weight"
_SOURCE, _TARGET = "encoder.embedding.tokens.weight", "decoder.embedding.tokens.weight"
_OUTPUT, _BIAS = "decoder.output.weight", "decoder.output.bias"


def read(folder: Path, options: ExportOptions) -> Checkpoint:
    """Read a MarianMT folder.

    Raises:
        ExportError: it asks for what is not supported here, or lacks what it needs; the message says what.
    """
    config = read_json(folder, "config.json")
    refuse_unsupported(folder, config, _SUPPORTED)
    vocabulary = read_vocabulary(folder, "vocab.json")
    tags = {piece: found.group(1) for piece in vocabulary if (found := _TAG.fullmatch(piece))}
    source, target, special, lacking = _tokenizers(folder, config, vocabulary, tags.keys())
    model = _network(folder, config, special.unk, lacking)
    languages = LanguageTokens(target={language: vocabulary[tag] for tag, language in tags.items()})
    pair = _pair(folder, languages, options)
    metadata = {"provenance": f"imported from the MarianMT model {folder.resolve().name}"}
    return Checkpoint(model, source, target, *pair, metadata, special, languages)


def _tokenizers(
    folder: Path, config: Mapping[str, Any], vocabulary: Mapping[str, int], tags: Set[str]
) -> tuple[Tokenizer, Tokenizer, SpecialIds, int]:
    """Both tokenizers, the special ids, and how many source pieces the network lacks."""
    target_vocabulary = read_vocabulary(folder, "target_vocab.json", optional=True) or vocabulary
    bos, pad, eos = (
        require_id(folder, config, f"{name}_token_id") for name in ("decoder_start", "pad", "eos")
    )
    if "<unk>" not in vocabulary:
        raise ExportError(f"{folder / 'vocab.json'} has no <unk>")
    special = SpecialIds(pad, vocabulary["<unk>"], bos, eos, never_said(folder, config))
    for name, table in (("vocab.json", vocabulary), ("target_vocab.json", target_vocabulary)):
        missing = {pad, eos, bos, special.unk} - set(table.values())
        if missing:
            raise ExportError(f"{folder / name} names no piece with the id {min(missing)}, which is special")
    source = read_pieces(read_bytes(folder, "source.spm"), "source.spm")
    target = read_pieces(read_bytes(folder, "target.spm"), "target.spm")
    lacking = [piece for piece in words_of(source) if piece not in vocabulary]
    source_size, target_size = _vocabulary_sizes(folder, config)
    extended = {**vocabulary, **{piece: source_size + i for i, piece in enumerate(lacking)}}
    size = source_size + len(lacking)
    source_model = renumbered(source, extended, special, tags, size=size, decodes=False)
    target_model = renumbered(target, target_vocabulary, special, tags, size=target_size, decodes=True)
    return Tokenizer(source_model, special), Tokenizer(target_model, special), special, len(lacking)


def _vocabulary_sizes(folder: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """Of the source and the target, as `config.json` has them."""
    own = "vocab_size" if config.get("decoder_vocab_size") is None else "decoder_vocab_size"
    return require_size(folder, config, "vocab_size"), require_size(folder, config, own)


def _network(folder: Path, config: Mapping[str, Any], unk: int, lacking: int) -> Transformer:
    weights = read_weights(folder)
    embeddings = _embeddings(weights, tied=config.get("tie_word_embeddings", True))
    for name, size in zip((_SOURCE, _TARGET), _vocabulary_sizes(folder, config), strict=True):
        if len(embeddings[name]) != size:
            rows = len(embeddings[name])
            raise ExportError(f"{folder}: {name} has {rows} rows, by config.json it should have {size}")
    shared = _extend(embeddings, unk, lacking)
    ours = model_config(
        folder,
        config,
        source_vocabulary_size=len(embeddings[_SOURCE]),
        target_vocabulary_size=len(embeddings[_TARGET]),
        shared_vocabulary=shared,
        scaled_embedding=config.get("scale_embedding", False),
        tied_output=torch.equal(embeddings[_OUTPUT], embeddings[_TARGET]),
        output_bias=True,
    )
    positions = _positions(ours.max_positions, ours.d_model)
    for side in ("encoder", "decoder"):
        name = f"model.{side}.embed_positions.weight"
        if name in weights and not torch.allclose(weights.take(name), positions, atol=1e-4):
            raise ExportError(f"the weights in {folder} have positions that are not sinusoidal: {name}")
    model = transformer(ours, weights, embeddings, positions)
    weights.require_empty()
    return model


def _embeddings(weights: Weights, *, tied: bool) -> dict[str, Tensor]:
    """The tables of both sides and the output layer, by our names.

    A table that is not saved is another one: that of both sides, or the target's.
    """
    shared = weights.take(_SHARED) if _SHARED in weights else None
    source, target = (
        shared if shared is not None and name not in weights else weights.take(name)
        for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    )
    if tied:
        weights.discard("lm_head.weight")
    output = target if tied else weights.take("lm_head.weight")
    has_bias = "final_logits_bias" in weights
    bias = weights.take("final_logits_bias").flatten() if has_bias else torch.zeros(len(output))
    return {_SOURCE: source, _TARGET: target, _OUTPUT: output, _BIAS: bias.clamp_min(_NEVER)}


def _extend(embeddings: dict[str, Tensor], unk: int, lacking: int) -> bool:
    """Give pieces that the network lacks, which are <unk> to it, that row; whether all share a table."""

    def longer(table: Tensor, row: Tensor) -> Tensor:
        return torch.cat((table, row.expand(lacking, *row.shape)))

    shared = torch.equal(embeddings[_SOURCE], embeddings[_TARGET])
    for name in (_SOURCE, _TARGET, _OUTPUT) if shared else (_SOURCE,):
        embeddings[name] = longer(embeddings[name], embeddings[name][unk])
    if shared:
        embeddings[_BIAS] = longer(embeddings[_BIAS], torch.tensor(_NEVER))
    return shared


def _positions(length: int, d_model: int) -> Tensor:
    """Sinusoids, all sines before all cosines."""
    interleaved = sinusoids(length, d_model)
    return torch.cat((interleaved[:, 0::2], interleaved[:, 1::2]), dim=1)


def _pair(folder: Path, languages: LanguageTokens, options: ExportOptions) -> tuple[str, str]:
    """The languages, or, of several, those that the export is checked with."""
    stated = read_json(folder, "tokenizer_config.json", optional=True)
    source = options.source_language or stated.get("source_lang")
    target = options.target_language or next(iter(languages.target), stated.get("target_lang"))
    for flag, language in (("source", source), ("target", target)):
        if not language:
            raise ExportError(f"{folder} does not say its {flag} language: name it with --{flag}-language")
    if languages.target and target not in languages.target:
        known = ", ".join(sorted(languages.target))
        raise ExportError(f"the model has no target language {target!r}, only {known}")
    return str(source), str(target)
