"""Logging to standard error: one line per record, whatever it holds."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

__all__ = ["TRACE_ID", "JsonFormatter", "OneLineFormatter", "note_trace", "set_up_logging"]

TRACE_ID: ContextVar[str] = ContextVar("trace_id", default="")
"""The trace of the call in progress, in hexadecimal; empty where there is none."""

_USUAL = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}


class OneLineFormatter(logging.Formatter):
    """Escapes what would begin a new line or drive a terminal, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        text = super().format(record)
        trace_id = getattr(record, "trace_id", "")
        text += f" trace_id={trace_id}" if trace_id else ""
        return "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
        )


class JsonFormatter(logging.Formatter):
    """A JSON object in ASCII: time (RFC 3339), level, logger, message, error, and what `extra` gives."""

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        # What everybody has goes last, so that nothing that is given can stand for it.
        return json.dumps({**_extra(record), **fields}, default=str)


def note_trace(record: logging.LogRecord) -> bool:
    """A filter that lets everything pass, and gives it the `trace_id` of its call."""
    if trace_id := TRACE_ID.get():
        record.trace_id = trace_id
    return True


def set_up_logging(style: Literal["text", "json"] = "text") -> None:
    """Send records of level INFO and above to standard error."""
    handler = logging.StreamHandler()
    text = OneLineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if style == "json" else text)
    handler.addFilter(note_trace)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _USUAL}
