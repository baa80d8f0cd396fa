"""Amounts as a reader wants them; what is missing is a dash."""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "MISSING",
    "bucket",
    "count",
    "error_share",
    "is_number",
    "is_valid",
    "listed",
    "objectives",
    "rate",
    "seconds",
    "setting",
    "share",
]

MISSING = "—"
_MINUTES_FROM = 120.0
_ROUNDS_TO_ONE = 0.9995  # to three digits
_MOST_DECIMALS = 6


def is_number(value: object) -> bool:
    """Whether there is a finite number to show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def seconds(value: float | None) -> str:
    """A time in the unit that suits it: 420 µs, 23 ms, 1.68 s, 2 min 30 s."""
    if value is None or not is_number(value):
        return MISSING
    size = abs(value)
    if size >= _MINUTES_FROM:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "\N{MICRO SIGN}s")):
        if size * factor >= _ROUNDS_TO_ONE or unit == "\N{MICRO SIGN}s":
            return "0 s" if not size else f"{_digits(value * factor)} {unit}"
    raise AssertionError("the last unit takes every size")


def rate(value: float | None) -> str:
    """A number per second, to three digits or the whole number."""
    return MISSING if value is None or not is_number(value) else _digits(value)


def count(value: float | None) -> str:
    """A whole number."""
    return MISSING if value is None or not is_number(value) else f"{value:,.0f}"


def share(value: float | None) -> str:
    """A share in per cent; one that is not quite all or nothing never reads as 100% or 0%."""
    if value is None or not is_number(value):
        return MISSING
    percent = round(100.0 * value, _MOST_DECIMALS)  # 0.03 may come as 0.030000000000000027
    for decimals in range(1, _MOST_DECIMALS + 1):
        text = f"{percent:.{decimals}f}"
        if float(text) not in (0.0, 100.0) or percent in (0.0, 100.0):
            break
    return f"{text.rstrip('0').rstrip('.')}%"


def error_share(figures: dict[str, Any]) -> float | None:
    """Share of the requests that failed, of those whose end says something of the server."""
    requests = figures.get("requests") or {}
    spoilt = requests.get("cancelled_on_purpose", 0) + requests.get("read_slowly", 0)
    relevant = requests.get("sent", 0) - spoilt
    return float(requests.get("failed", 0) / relevant) if relevant > 0 else None


def is_valid(figures: dict[str, Any] | None) -> bool:
    """Whether the run says something of the server, as far as it checked itself."""
    return bool(((figures or {}).get("self_check") or {}).get("valid", True))


def bucket(found: dict[str, Any]) -> str:
    """The source lengths of a bucket."""
    first, last = found.get("from"), found.get("to")
    return f"{first} or more" if last is None else f"{first} to {last}"


def listed(texts: list[str]) -> str:
    """Texts as a sentence lists them: a, b and c."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def objectives(text: str | None) -> str:
    """A comma-separated list of objectives as a sentence lists them."""
    return listed([part.strip() for part in (text or "").split(",")])


def setting(name: str, value: object) -> str:
    """A value of the settings, the model's description or the machine."""
    if value is None or value == "" or value == []:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(setting(name, part) for part in value)
    if isinstance(value, int | float):
        return _quantity(name, float(value))
    return str(value)


def _quantity(name: str, value: float) -> str:
    if name.endswith("_seconds"):
        return seconds(value)
    if name.endswith("_share"):
        return share(value)
    if name.endswith("_bytes"):
        return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    return f"{value:,.10g}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
