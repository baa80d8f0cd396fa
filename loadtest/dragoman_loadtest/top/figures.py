"""What a server did between two readings of its metrics."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

from dragoman_loadtest.scrape import Growth

__all__ = ["ModelFigures", "ServerFigures", "figures_of"]

_TRANSLATE = "/dragoman.v1.TranslationService/Translate"
_OF_GRPC = "/grpc."
"""How the methods begin that gRPC brings along: health checks and reflection."""


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model; times are in seconds, and None where nothing was timed."""

    model: str
    version: str
    precision: str
    device: str
    source_tokens_per_second: float
    output_tokens_per_second: float
    """Of sentences that have ended."""
    queue_depth: int
    """Sentences that wait now."""
    queue_seconds_p50: float | None
    queue_seconds_p99: float | None
    slots_in_use: int
    slots: int
    step_seconds: float | None
    """Mean of the decode steps."""
    rows_per_step: float | None
    refusals_per_second: dict[str, float]
    """Sentences turned away, by cause."""
    stalled_workers: int


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """The whole server; times are in seconds, and None where nothing was timed."""

    seconds: float
    """Between the readings."""
    uptime_seconds: float
    calls_per_second: dict[str, float]
    """Calls that have ended, by status code, without health checks; only codes that occurred."""
    calls_in_progress: int
    call_seconds_p50: float | None
    """Of `Translate`, from a call's arrival to its end."""
    call_seconds_p99: float | None
    resident_bytes: int
    cpus: float
    """CPU seconds a second."""
    models: tuple[ModelFigures, ...]


def figures_of(growth: Growth) -> ServerFigures:
    """The figures between two readings."""
    now = growth.after
    served = sorted(now.select("dragoman_model_info"), key=lambda sample: sample.labels["model"])
    return ServerFigures(
        seconds=growth.seconds,
        uptime_seconds=time.time() - now.value("process_start_time_seconds"),
        calls_per_second=_calls_per_second(growth),
        calls_in_progress=int(now.value("dragoman_calls_in_progress")),
        call_seconds_p50=growth.quantile(0.5, "dragoman_call_seconds", method=_TRANSLATE),
        call_seconds_p99=growth.quantile(0.99, "dragoman_call_seconds", method=_TRANSLATE),
        resident_bytes=int(now.value("process_resident_memory_bytes")),
        cpus=growth.rate("process_cpu_seconds_total"),
        models=tuple(_model(growth, sample.labels) for sample in served),
    )


def _calls_per_second(growth: Growth) -> dict[str, float]:
    rates: defaultdict[str, float] = defaultdict(float)
    for method in growth.by("method", "dragoman_calls_total"):
        if not method.startswith(_OF_GRPC):
            for code, count in growth.by("code", "dragoman_calls_total", method=method).items():
                rates[code] += count / growth.seconds
    return {code: rate for code, rate in sorted(rates.items()) if rate}


def _model(growth: Growth, served: dict[str, str]) -> ModelFigures:
    now, model = growth.after, served["model"]
    steps = growth.of("dragoman_step_seconds_count", model=model)
    refusals = growth.by("cause", "dragoman_refusals_total", model=model)
    return ModelFigures(
        model=model,
        version=served["version"],
        precision=served["precision"],
        device=served["device"],
        source_tokens_per_second=growth.rate("dragoman_source_tokens_total", model=model),
        output_tokens_per_second=growth.rate("dragoman_output_tokens_total", model=model),
        queue_depth=int(now.value("dragoman_queue_depth", model=model)),
        queue_seconds_p50=growth.quantile(0.5, "dragoman_queue_seconds", model=model),
        queue_seconds_p99=growth.quantile(0.99, "dragoman_queue_seconds", model=model),
        slots_in_use=int(now.value("dragoman_slots_in_use", model=model)),
        slots=int(now.value("dragoman_slots", model=model)),
        step_seconds=growth.mean("dragoman_step_seconds", model=model),
        rows_per_step=growth.of("dragoman_step_rows_total", model=model) / steps if steps else None,
        refusals_per_second={cause: count / growth.seconds for cause, count in refusals.items() if count},
        stalled_workers=int(now.value("dragoman_stalled_workers", model=model)),
    )
