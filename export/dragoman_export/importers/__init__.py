"""Checkpoints of other projects, read as ours; each format has a file, which says what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dragoman_export.importers import m2m100, marian
from dragoman_export.options import ExportOptions, SourceFormat
from dragoman_model.checkpoint import Checkpoint, load_checkpoint

__all__ = ["read_model"]

_READERS: Mapping[SourceFormat, Callable[[Path, ExportOptions], Checkpoint]] = {
    "dragoman": lambda folder, _: load_checkpoint(folder),
    "marian": marian.read,
    "m2m100": m2m100.read,
}


def read_model(folder: Path, options: ExportOptions) -> Checkpoint:
    """Read a checkpoint in the format that the options name, in evaluation mode.

    Raises:
        ExportError: the folder asks for what is not supported here, or lacks what it needs.
        ValueError: a file is missing or damaged.
    """
    return _READERS[options.source_format](folder, options)
