"""JSON values to dataclasses: every key known, every type right, nothing converted.

Supported field types: `str`, `int`, `float`, `bool`, `Literal` of strings, `tuple[T, ...]`,
`Mapping[str, T]` and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

__all__ = ["RecordError", "parse_json"]

Record = TypeVar("Record")


class RecordError(ValueError):
    """A JSON value does not fit the dataclass; the message names the field by its path."""


def parse_json(kind: type[Record], value: object) -> Record:
    """Build a dataclass, or another type of those above, from what `json.loads` returned.

    Raises:
        RecordError: a key is unknown or missing, or a value is of the wrong type.
    """
    return cast(Record, _parse(kind, value, ""))


def _parse(kind: Any, value: object, where: str) -> object:
    if dataclasses.is_dataclass(kind):
        return _parse_record(cast(type, kind), value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        items = _require(list, value, where or "the document")
        return tuple(_parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is Mapping:
        entries = _require(dict, value, where)
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in entries.items()}
    if origin is Literal:
        if value not in arguments:
            raise RecordError(f"{where} must be one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    return _parse_scalar(kind, value, where)


def _parse_record(record: type, value: object, where: str) -> object:
    entries = _require(dict, value, where or "the document")
    prefix = f"{where}." if where else ""
    hints = get_type_hints(record)
    fields = {field.name: field for field in dataclasses.fields(record)}
    for key in entries:
        if key not in fields:
            raise RecordError(f"{prefix}{key} is an unknown key")
    for name in fields:
        if name not in entries:
            raise RecordError(f"{prefix}{name} is missing")
    return record(**{name: _parse(hints[name], entries[name], f"{prefix}{name}") for name in fields})


def _parse_scalar(kind: type, value: object, where: str) -> object:
    if kind is float and type(value) in (int, float):
        return _finite(cast(float, value), where)
    return _require(kind, value, where)


def _finite(value: float, where: str) -> float:
    # JSON has no bound on numbers: 1e999 reads as infinity, and an integer may exceed every float.
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise RecordError(f"{where} is too large a number")
    return float(value)


def _require(kind: type[Record], value: object, where: str) -> Record:
    if type(value) is not kind:  # exact: JSON's true is no number
        raise RecordError(f"{where} must be of type {kind.__name__}, not {type(value).__name__}")
    return value
