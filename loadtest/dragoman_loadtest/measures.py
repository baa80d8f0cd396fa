"""Times of requests from their records."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from dragoman_loadtest.samples import Code
from dragoman_loadtest.schedule import Fate

__all__ = ["Metric", "answered", "counted", "seconds_of", "timed"]

Metric = Literal["latency", "service", "ttft", "tpot"]
"""latency: from the scheduled time to the last byte, free of coordinated omission. service: from the moment
it was really sent. ttft: from the scheduled time to the first piece of a streamed translation. tpot: time per
output token after the first piece."""

_Mask = NDArray[np.bool_]


def answered(records: NDArray[Any]) -> _Mask:
    """Requests that came to a good end."""
    return cast("_Mask", records["code"] == Code.OK)


def counted(records: NDArray[Any]) -> _Mask:
    """Requests whose end says something of the server: none that the client spoilt on purpose."""
    return cast("_Mask", records["fate"] == Fate.PLAIN)


def timed(records: NDArray[Any]) -> _Mask:
    """Requests that percentiles are taken over: answered, or still open and at least that old."""
    return cast("_Mask", counted(records) & ((records["code"] == Code.OK) | (records["code"] == Code.OPEN)))


def seconds_of(records: NDArray[Any], metric: Metric) -> NDArray[np.float64]:
    """A metric of every request, in seconds; nan where it has none."""
    if metric == "latency":
        return cast("NDArray[np.float64]", records["done"] - records["scheduled"])
    if metric == "service":
        return cast("NDArray[np.float64]", records["done"] - records["sent"])
    if metric == "ttft":
        return cast("NDArray[np.float64]", records["first"] - records["scheduled"])
    tokens = records["output_tokens"]
    with np.errstate(divide="ignore", invalid="ignore"):
        per_token = (records["done"] - records["first"]) / (tokens - 1)
    return cast("NDArray[np.float64]", np.where(tokens > 1, per_token, np.nan))
