"""What the server says of itself: its models, and its Prometheus metrics before and after."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from dragoman.options import TranslateOptions
from dragoman_loadtest.options import Target
from dragoman_loadtest.scrape import scrape
from dragoman_loadtest.wire import Wire

__all__ = ["Metrics", "MetricsReader", "describe_model", "occupancy"]

_CONNECT_SECONDS = 10.0

Metrics = dict[str, float]
"""Samples by name, summed over their labels; `_total` and `_sum` as Prometheus names them."""


def describe_model(target: Target, options: TranslateOptions) -> dict[str, Any]:
    """The model that requests with these options reach, as `GetModel` describes it.

    Raises:
        ConnectionError: the server does not answer.
        ValueError: no model, or more than one, fits.
    """
    models = asyncio.run(_models(target))
    fitting = [model for model in models if _fits(model["summary"], options)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(model["summary"]["name"] for model in models) or "none"
    if fitting:
        raise ValueError(f"{len(fitting)} models of the server fit: give --model; it serves {names}")
    raise ValueError(f"no model of the server fits --model, --source and --target; it serves {names}")


def _fits(summary: dict[str, Any], options: TranslateOptions) -> bool:
    return (
        options.model in ("", summary["name"])
        and (not options.source or options.source in summary.get("source_languages", ()))
        and (not options.target or options.target in summary.get("target_languages", ()))
    )


async def _models(target: Target) -> list[dict[str, Any]]:
    wire = Wire(target)
    try:
        return await wire.models(_CONNECT_SECONDS)
    except ConnectionError as error:
        fix = "start one with `dragoman serve`, or name another with --endpoint"
        raise ConnectionError(f"no server answers at {target.endpoint}: {fix} ({error})") from error
    finally:
        await wire.close()


@dataclass(slots=True)
class MetricsReader:
    """Reads a Prometheus endpoint; what cannot be read is empty, and `error` says why."""

    address: str | None
    error: str = ""

    def read(self) -> Metrics:
        """All samples now."""
        if self.address is None:
            return {}
        try:
            scraped = scrape(self.address)
        except ConnectionError as error:
            self.error = str(error)
            return {}
        sums: Metrics = {}
        for sample in scraped.samples:
            if not sample.name.endswith("_bucket"):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return sums


def occupancy(before: Metrics, after: Metrics) -> dict[str, float]:
    """How full the decode steps between two readings were; empty without readings."""

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    steps, rows = grown("dragoman_step_seconds_count"), grown("dragoman_step_rows_total")
    encoded = grown("dragoman_encoder_tokens_total")
    if steps <= 0.0 or rows <= 0.0:
        return {}
    padding = grown("dragoman_encoder_padding_total")
    return {
        "steps": steps,
        "mean_step_seconds": grown("dragoman_step_seconds_sum") / steps,
        "rows_per_step": rows / steps,
        "padded_rows_share": grown("dragoman_step_padded_rows_total") / rows,
        "encoder_padding_share": padding / (encoded + padding) if encoded + padding else 0.0,
        "slots": after.get("dragoman_slots", 0.0),
    }
