"""A checkpoint's manifest: file names, dimensions, state, and where everything comes from."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from dragoman_export.options import ExportError, ExportOptions, Precision
from dragoman_model.checkpoint import Checkpoint
from dragoman_model.config import ModelConfig
from dragoman_server.manifest import (
    Dimensions,
    FileRecord,
    Graphs,
    Limits,
    Manifest,
    Score,
    Tokenizers,
)
from dragoman_server.state_tensor import StateTensor
from dragoman_server.strict_json import parse_json

__all__ = ["describe", "graph_files", "read_scores", "records", "tokenizer_files"]


def describe(
    checkpoint: Checkpoint,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    precisions: Mapping[str, Graphs],
    scores: tuple[Score, ...],
    options: ExportOptions,
) -> Manifest:
    """The manifest of a bundle with those files, before any gate."""
    config, metadata = checkpoint.config, checkpoint.metadata
    return Manifest(
        name=name,
        version=version,
        architecture="transformer",
        source_languages=checkpoint.source_languages,
        target_languages=checkpoint.target_languages,
        dimensions=_dimensions(config),
        special_ids=checkpoint.special,
        language_tokens=checkpoint.languages,
        limits=Limits(max_source_tokens=config.max_positions, max_target_tokens=config.max_positions),
        tokenizers=tokenizer_files(checkpoint),
        precisions=precisions,
        gates={},
        scores=scores,
        provenance=_stated(options.provenance, metadata.get("provenance")),
        licence=_stated(options.licence, metadata.get("licence")),
        created_by=_versions(),
        files=records(files),
    )


def graph_files(
    precision: Precision,
    state: tuple[StateTensor, ...],
    scales: Literal["none", "row-wise", "static"] = "none",
) -> Graphs:
    """What a precision's two graphs are called, and what they keep."""
    return Graphs(f"encoder.{precision}.onnx", f"decode_step.{precision}.onnx", state, scales)


def tokenizer_files(checkpoint: Checkpoint) -> Tokenizers:
    """The names of the tokenizers: one where both sides share it."""
    if checkpoint.source_tokenizer.model == checkpoint.target_tokenizer.model:
        return Tokenizers(source="tokenizer.spm", target="tokenizer.spm")
    return Tokenizers(source="source.spm", target="target.spm")


def records(files: Mapping[str, bytes]) -> dict[str, FileRecord]:
    """Sizes and hashes."""
    return {name: FileRecord(len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}


def read_scores(file: Path | None) -> tuple[Score, ...]:
    """The measurements that `file` lists.

    Raises:
        ExportError: `file` is not of the form that `ExportOptions.scores` asks for.
        OSError: `file` cannot be read.
    """
    if file is None:
        return ()
    try:
        return parse_json(tuple[Score, ...], json.loads(file.read_bytes()))
    except ValueError as error:
        raise ExportError(f"{file} is no JSON list of scores: {error}") from error


def _dimensions(config: ModelConfig) -> Dimensions:
    return Dimensions(
        d_model=config.d_model,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        d_ff=config.d_ff,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        source_vocabulary_size=config.source_vocabulary_size,
        target_vocabulary_size=config.target_vocabulary_size,
        encoder_num_heads=config.heads_of_encoder,
        encoder_d_ff=config.d_ff_of_encoder,
    )


def _stated(given: str | None, trained: object) -> str:
    return given if given is not None else str(trained or "")


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("dragoman", "torch", "onnx", "onnxscript", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
