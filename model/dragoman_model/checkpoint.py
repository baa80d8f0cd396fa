"""Checkpoints as safetensors and JSON: nothing is ever unpickled.

A checkpoint is a folder: `config.json` (dimensions, languages, provenance), `model.safetensors`, and the
tokenizer (`tokenizer.spm`, or `source.spm` and `target.spm`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dragoman_model.config import ModelConfig
from dragoman_model.transformer import Transformer
from dragoman_server.languages import Direction, LanguageTokens
from dragoman_server.special_ids import SpecialIds
from dragoman_server.tokenizer import Tokenizer

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "average_weights",
    "load_checkpoint",
    "load_weights",
    "save_weights",
]

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the fix."""


@dataclass(slots=True)
class Checkpoint:
    """A trained model with everything needed to use it."""

    model: Transformer
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    source_language: str
    target_language: str
    metadata: dict[str, Any] = field(default_factory=dict)
    """How it came about: provenance, licence, training options, scores."""
    special: SpecialIds = field(default_factory=SpecialIds)
    """Others than our own where it was imported, as are the languages' tokens."""
    languages: LanguageTokens = field(default_factory=LanguageTokens)
    """How the network is told which languages are meant; `source_language` and `target_language` are then
    the ones it is checked with."""

    @property
    def config(self) -> ModelConfig:
        """The network's dimensions."""
        return self.model.config

    @property
    def direction(self) -> Direction:
        """The languages it translates, or is checked with."""
        return Direction(self.source_language, self.target_language)

    @property
    def source_languages(self) -> tuple[str, ...]:
        """All that it translates from, the one of `direction` first."""
        return _with_first(self.source_language, self.languages.source)

    @property
    def target_languages(self) -> tuple[str, ...]:
        """All that it translates to, likewise."""
        return _with_first(self.target_language, self.languages.forced or self.languages.target)

    def source_ids(self, text: str, longest: int | None = None) -> list[int]:
        """What the encoder is fed for a sentence, the languages' tokens and the end symbol included.

        Args:
            text: In the source language.
            longest: Tokens of the sentence at most; what goes beyond is cut.
        """
        pieces = self.source_tokenizer.encode(text)[:longest]
        return [*self.languages.prefix(self.direction), *pieces, self.special.eos]

    def save(self, folder: Path) -> None:
        """Write the checkpoint into `folder`, over an earlier one.

        Raises:
            CheckpointError: it was imported: its special ids have no place in the format.
        """
        if self.special != SpecialIds() or self.languages != LanguageTokens():
            raise CheckpointError("an imported model is exported from the folder that it came in")
        folder.mkdir(parents=True, exist_ok=True)
        if self.source_tokenizer is self.target_tokenizer:
            (folder / "tokenizer.spm").write_bytes(self.source_tokenizer.model)
        else:
            (folder / "source.spm").write_bytes(self.source_tokenizer.model)
            (folder / "target.spm").write_bytes(self.target_tokenizer.model)
        save_weights(self.model.state_dict(), folder / "model.safetensors")
        facts = {
            "format": FORMAT,
            "architecture": "transformer",
            "source_language": self.source_language,
            "target_language": self.target_language,
            "model": asdict(self.config),
            "metadata": self.metadata,
        }
        (folder / "config.json").write_text(json.dumps(facts, indent=2) + "\n")


def _with_first(first: str, languages: Iterable[str]) -> tuple[str, ...]:
    return (first, *(language for language in languages if language != first))


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors atomically; tensors that share memory (tied embeddings) are written once."""
    seen: dict[int, str] = {}
    unique = {}
    for name, tensor in weights.items():
        if seen.setdefault(tensor.data_ptr(), name) == name:
            unique[name] = tensor.detach().contiguous().cpu()
    partial = file.with_suffix(".partial")
    save_file(unique, partial)
    partial.replace(file)


def load_weights(model: Transformer, file: Path) -> None:
    """Fill `model` with the tensors of `file`, which names tied ones once.

    Raises:
        CheckpointError: the file is damaged, or holds other tensors than the model has.
    """
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: not readable as safetensors ({error})") from error
    expected = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    given = {expected[name] for name in weights if name in expected}
    missing = [name for name, pointer in expected.items() if pointer not in given]
    unknown = [name for name in weights if name not in expected]
    if missing or unknown:
        named = ", ".join([*missing, *unknown][:3])
        raise CheckpointError(f"{file}: its tensors are not those of config.json's model (see {named})")
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{file}: a tensor has another shape than config.json says") from error


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint; the model comes on the CPU, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, damaged, or of an unknown format.
    """
    try:
        facts = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no checkpoint (config.json is missing)") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: not JSON") from error
    if facts.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / 'config.json'}: format {facts.get('format')} is not {FORMAT}, the one known"
        )
    try:
        model = Transformer(ModelConfig(**facts["model"])).eval()
        languages = facts["source_language"], facts["target_language"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: a field is missing or unknown ({error})") from error
    load_weights(model, folder / "model.safetensors")
    return Checkpoint(model, *_load_tokenizers(folder, model.config), *languages, facts.get("metadata", {}))


def _load_tokenizers(folder: Path, config: ModelConfig) -> tuple[Tokenizer, Tokenizer]:
    names = ["tokenizer.spm"] if (folder / "tokenizer.spm").is_file() else ["source.spm", "target.spm"]
    tokenizers = []
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: no such file")
        tokenizers.append(Tokenizer((folder / name).read_bytes()))
    source, target = tokenizers[0], tokenizers[-1]
    sizes = source.vocabulary_size, target.vocabulary_size
    if sizes != (config.source_vocabulary_size, config.target_vocabulary_size):
        raise CheckpointError(f"{folder}: the tokenizers' sizes {sizes} are not those of config.json")
    return source, target


def average_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of several weight files, tensor by tensor (Vaswani et al. 2017, section 6.1).

    Raises:
        ValueError: no files are given.
    """
    if not files:
        raise ValueError("there are no weights to average")
    total = {name: tensor.double() for name, tensor in load_file(files[0]).items()}
    for file in files[1:]:
        for name, tensor in load_file(file).items():
            total[name] += tensor
    return {name: (tensor / len(files)).to(torch.float32) for name, tensor in total.items()}
