"""Bearer tokens (RFC 6750): who may call, read from a file that holds no token, only hashes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from pathlib import Path

from dragoman_server.service.watched_files import WatchedFiles

__all__ = ["TokenFile", "new_token", "token_line"]

_log = logging.getLogger(__name__)
_LINE = re.compile(r"(?P<name>[\w.@-]{1,64}) (?P<hash>[0-9a-f]{64})")


def new_token() -> str:
    """A token of 256 random bits."""
    return secrets.token_urlsafe(32)


def token_line(name: str, token: str) -> str:
    """What a token file says of a token: its owner's name and its SHA-256.

    A hash made slow on purpose protects secrets that can be guessed; nobody guesses 256 random bits.

    Raises:
        ValueError: the name is empty, too long, or has other characters than letters, digits and `_.@-`.
    """
    line = f"{name} {_hash(token)}"
    if not _LINE.fullmatch(line):
        raise ValueError(f"a name is 1 to 64 letters, digits, and _ . @ -, which {name!r} is not")
    return line


class TokenFile:
    """The tokens of a file with a line `NAME SHA256` for each; `#` begins a comment.

    The file is read again when it changes: a line taken out is a token revoked. Where it cannot be read then,
    those read last go on to hold.

    Raises:
        ValueError: a line is none.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._files = WatchedFiles(path)
        self._path = path
        self._names = self._read()

    def name_of(self, token: str) -> str | None:
        """Whose token that is; `None` for nobody's."""
        if self._files.changed():
            try:
                self._names = self._read()
            except (OSError, ValueError) as error:
                _log.error("the tokens stay as they were: %s", error)
        given, found = _hash(token), None
        for known, name in self._names.items():
            # All are compared, each in constant time: how long it takes tells nothing.
            if hmac.compare_digest(known, given):
                found = name
        return found

    def _read(self) -> dict[str, str]:
        names: dict[str, str] = {}
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), start=1):
            text = line.partition("#")[0].strip()
            match = _LINE.fullmatch(text)
            if text and match is None:
                raise ValueError(f"{self._path}:{number} is no line NAME SHA256; `dragoman token` writes one")
            if match is not None:
                names[match["hash"]] = match["name"]
        return names


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
