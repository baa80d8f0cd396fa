"""What a training run keeps on disk beside its checkpoint, and whose it is."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dragoman_model.checkpoint import Checkpoint
from dragoman_model.corpus import ParallelCorpus
from dragoman_model.options import TrainOptions
from dragoman_model.vocabulary import train_tokenizers
from dragoman_server.tokenizer import Tokenizer

__all__ = ["claim_run_folder", "keep_tokenizers", "run_tokenizers"]

_log = logging.getLogger(__name__)
# A run may go on for longer than it was first meant to.
_MAY_CHANGE = ("max_steps", "max_minutes", "patience", "average_of")


def claim_run_folder(
    folder: Path,
    options: TrainOptions,
    train: ParallelCorpus,
    valid: ParallelCorpus,
    initial: Checkpoint | None,
    resume_file: Path,
) -> None:
    """Make `folder` this run's: it goes on with what is there, or begins where nothing was trained yet.

    Raises:
        ValueError: the folder holds the state of a run with other options, text or initial weights.
    """
    settings = _settings(options, train, valid, initial)
    file = folder / "options.json"
    before = json.loads(file.read_text()) if file.is_file() else {}
    changed = [
        f"{part}.{name}"
        for part, values in settings.items()
        for name, value in values.items()
        if value != before.get(part, {}).get(name) and not (part == "run" and name in _MAY_CHANGE)
    ]
    if changed and resume_file.is_file():
        raise ValueError(
            f"{folder.parent} holds a run with other options ({', '.join(changed)}): "
            "give the same ones to go on with it, or another --out"
        )
    if changed:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=2) + "\n")


def _settings(
    options: TrainOptions, train: ParallelCorpus, valid: ParallelCorpus, initial: Checkpoint | None
) -> dict[str, dict[str, Any]]:
    """Plain JSON values: what was read back is compared with it."""
    given = {"train": _identity(train), "valid": _identity(valid), "initial": _weights_hash(initial)}
    settings: dict[str, dict[str, Any]] = json.loads(json.dumps({**asdict(options), "given": given}))
    return settings


def _identity(corpus: ParallelCorpus) -> list[list[str | int]]:
    return [[file.name, file.stat().st_size] for file in corpus.files]


def _weights_hash(checkpoint: Checkpoint | None) -> str | None:
    if checkpoint is None:
        return None
    digest = hashlib.sha256()
    for tensor in checkpoint.model.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def keep_tokenizers(folder: Path, source: Tokenizer, target: Tokenizer) -> None:
    """Make these the run's tokenizers."""
    for side, tokenizer in (("source", source), ("target", target)):
        (folder / f"{side}.spm").write_bytes(tokenizer.model)


def run_tokenizers(folder: Path, train: ParallelCorpus, options: TrainOptions) -> tuple[Tokenizer, Tokenizer]:
    """The run's source and target tokenizers, trained if they are not there yet.

    Raises:
        CorpusError: the text does not support the vocabulary.
    """
    files = [folder / f"{side}.spm" for side in ("source", "target")]
    if not all(file.is_file() for file in files):
        _log.info("training the tokenizer")
        keep_tokenizers(
            folder, *train_tokenizers(train, options.vocabulary, options.augment, options.run.seed)
        )
    source = Tokenizer(files[0].read_bytes())
    return source, source if options.vocabulary.shared_vocabulary else Tokenizer(files[1].read_bytes())
