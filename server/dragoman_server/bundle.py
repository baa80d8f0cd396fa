"""Opens bundles: nothing is loaded that the manifest does not describe to the byte.

A bundle is a directory with `bundle.json`, one encoder and one decode-step graph per precision, the
tokenizers and a model card. It may come from elsewhere, so links are not followed, names cannot leave the
directory, and every file's size and SHA-256 must be those of the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dragoman_server.errors import BundleError
from dragoman_server.manifest import MANIFEST_FILE, VERSION_PATTERN, FileRecord, Manifest
from dragoman_server.starter import is_installed

__all__ = ["Bundle", "find_bundles"]

_MAX_MANIFEST_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest is sound and whose files are present with the right sizes.

    Contents are checked when read: `read` returns bytes that hash to what the manifest says, or raises.
    """

    path: Path
    manifest: Manifest
    manifest_sha256: str
    """In lower-case hexadecimal; equal values mean equal files."""

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open the bundle in the directory `path`.

        Raises:
            BundleError: the directory is no bundle, or not one to be trusted; the message names the file.
        """
        with _directory(path) as directory:
            try:
                text = _read_file(directory, MANIFEST_FILE, _MAX_MANIFEST_BYTES)
                manifest = Manifest.from_json(text)
                _require_exact_files(directory, manifest)
            except BundleError as error:
                raise BundleError(f"{path}: {error}") from error
        return cls(path, manifest, hashlib.sha256(text).hexdigest())

    def read(self, name: str) -> bytes:
        """The bytes of the file `name`.

        Raises:
            BundleError: the manifest has no such file, or the file is not what the manifest says.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(f"{self.path}: the bundle has no file {name!r}")
        with _directory(self.path) as directory:
            try:
                return _read_recorded(directory, name, record)
            except BundleError as error:
                raise BundleError(f"{self.path}: {error}") from error


def find_bundles(root: Path) -> dict[str, dict[str, Path]]:
    """The directories below `root`, which holds `NAME/VERSION/`, by name and version; the newest come first.

    Versions are integers, the highest is the newest. Names that begin with a dot, and versions that are no
    integers, are not looked at. What is in the directories is not looked at either; but `root` may itself be
    a bundle, whose name and version are those of its manifest.

    Raises:
        BundleError: there is no such directory, or `root` is a bundle that is not to be trusted.
    """
    if (root / MANIFEST_FILE).exists():
        manifest = Bundle.open(root).manifest
        return {manifest.name: {manifest.version: root}}
    if not root.is_dir():
        raise BundleError(f"{root} is no directory; name the one that holds NAME/VERSION/{MANIFEST_FILE}")
    models = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {model.name: versions for model in models if (versions := _versions(model))}
    if not found:
        raise BundleError(f"no bundle below {root}: expected NAME/VERSION/{MANIFEST_FILE}")
    return found


def _versions(model: Path) -> dict[str, Path]:
    found = [path for path in model.iterdir() if VERSION_PATTERN.fullmatch(path.name) and path.is_dir()]
    return {path.name: path for path in sorted(found, key=lambda path: int(path.name), reverse=True)}


@dataclass(frozen=True, slots=True)
class _Directory:
    descriptor: int
    hard_links: bool
    """Whether files may be known by other names too: installers such as uv link them to their cache."""


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[_Directory]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"{path} is no directory that can be opened: {error.strerror}") from error
    try:
        yield _Directory(descriptor, hard_links=is_installed(path))
    finally:
        os.close(descriptor)


def _require_exact_files(directory: _Directory, manifest: Manifest) -> None:
    found = set(os.listdir(directory.descriptor))  # noqa: PTH208 - a descriptor, no path
    expected = {MANIFEST_FILE, *manifest.files}
    if missing := sorted(expected - found):
        raise BundleError(f"{missing[0]} is missing; copy the whole bundle again")
    if extra := sorted(found - expected):
        raise BundleError(f"{extra[0]} does not belong to the bundle; remove it")
    for name, record in manifest.files.items():
        status = os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)
        _require_plain_file(directory, name, status)
        _require_size(name, status.st_size, record)


def _read_recorded(directory: _Directory, name: str, record: FileRecord) -> bytes:
    content = _read_file(directory, name, record.bytes)
    _require_size(name, len(content), record)
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise BundleError(f"{name} has been altered: its SHA-256 differs from the manifest's; copy it again")
    return content


def _read_file(directory: _Directory, name: str, max_bytes: int) -> bytes:
    """Read a plain file of at most `max_bytes`; the checks are made on the file that was opened."""
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for its other end.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=directory.descriptor)
    except OSError as error:
        raise BundleError(f"{name} cannot be opened: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        _require_plain_file(directory, name, status)
        if status.st_size > max_bytes:
            raise BundleError(f"{name} has {status.st_size} bytes, more than the {max_bytes} allowed")
        return file.read(max_bytes + 1)


def _require_plain_file(directory: _Directory, name: str, status: os.stat_result) -> None:
    linked = status.st_nlink != 1 and not directory.hard_links
    if not stat.S_ISREG(status.st_mode) or linked:
        raise BundleError(f"{name} must be a plain file of its own, neither link nor device; copy it again")


def _require_size(name: str, size: int, record: FileRecord) -> None:
    if size != record.bytes:
        raise BundleError(f"{name} has {size} bytes, the manifest says {record.bytes}; copy it again")
