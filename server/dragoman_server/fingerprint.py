"""Whether a directory has changed, without reading its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Fingerprint", "fingerprint", "fingerprints"]

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size in bytes and time in ns of every file: another one means that something has changed."""


def fingerprints(found: Mapping[str, Mapping[str, Path]]) -> dict[Path, Fingerprint]:
    """Those of the directories that `find_bundles` has found."""
    return {path: fingerprint(path) for versions in found.values() for path in versions.values()}


def fingerprint(path: Path) -> Fingerprint:
    """That of one directory; empty where it cannot be read."""
    try:
        with os.scandir(path) as entries:
            return tuple(sorted(map(_stamp, entries)))
    except OSError:
        return ()


def _stamp(entry: os.DirEntry[str]) -> tuple[str, int, int, int]:
    status = entry.stat(follow_symlinks=False)
    return entry.name, status.st_ino, status.st_size, status.st_mtime_ns
