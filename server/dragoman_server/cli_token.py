"""`dragoman token`: who may call a server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dragoman_server.service.tokens import new_token, token_line

__all__ = ["token"]


def token(name: str, /, *, file: Path) -> None:
    """Make a token, print it, and add its hash to a server's file; the token itself is kept nowhere.

    A running server notices. To revoke a token, remove its line.

    Args:
        name: Whose token it is, for the log.
        file: Of `dragoman serve --tokens` or `--admin-tokens`; made where there is none.
    """
    secret = new_token()
    line = token_line(name, secret)
    with os.fdopen(os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+", encoding="utf-8") as out:
        out.seek(0)
        known = out.read()
        # An editor may have left the last line without an end.
        out.write(f"{line}\n" if known.endswith("\n") or not known else f"\n{line}\n")
    sys.stdout.write(secret + "\n")
