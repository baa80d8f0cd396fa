"""Files that may change while the server runs: certificates, tokens."""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["WatchedFiles"]

_LOOK_SECONDS = 1.0


class WatchedFiles:
    """Says when one of some files has changed.

    Args:
        paths: The files.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._looked = time.monotonic()
        self._seen = self._state()

    def changed(self) -> bool:
        """Whether one has changed since this was last true; looks at them once a second at most."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        before, self._seen = self._seen, self._state()
        return self._seen != before

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_status(path) for path in self._paths]


def _status(path: Path) -> tuple[int, int, int] | None:
    """`None` of a file that is not there, or not to be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
