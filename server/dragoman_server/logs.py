"""Logging to standard error: one line per record, whatever it holds."""

from __future__ import annotations

import logging

__all__ = ["OneLineFormatter", "set_up_logging"]


class OneLineFormatter(logging.Formatter):
    """Escapes what would begin a new line or drive a terminal, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        text = super().format(record)
        return "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
        )


def set_up_logging() -> None:
    """Send records of level INFO and above to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
