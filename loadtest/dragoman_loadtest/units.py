"""Amounts as people write them on a command line (30s, 250ms, 2m, 5%) and read them in a table."""

from __future__ import annotations

import math
import re

__all__ = ["milliseconds", "parse_seconds", "parse_share"]

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(us|ms|s|m|h)?")


def parse_seconds(text: str) -> float:
    """Seconds of a duration such as 30s, 250ms, 1.5m; a bare number counts seconds.

    Raises:
        ValueError: it is no duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration: write it like 30s, 250ms or 2m")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def parse_share(text: str) -> float:
    """A share such as 0.05 or 5%.

    Raises:
        ValueError: it is none between 0 and 1.
    """
    number = text.strip()
    try:
        share = float(number.removesuffix("%")) / (100.0 if number.endswith("%") else 1.0)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{text!r} is no share: write it like 5% or 0.05")
    return share


def milliseconds(seconds: float | None) -> str:
    """A time as people read it."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    return f"{1e3 * seconds:,.1f} ms" if seconds < 1.0 else f"{seconds:,.2f} s"
