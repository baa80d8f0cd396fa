"""The engine: continuous batching over token ids. Text, the network's runtime and gRPC stay outside.

A request's life: `Engine.submit` -> `SharedQueue` (policy: `scheduler`) -> a `Worker` takes it, encodes it
and steps it beside others (`search` holds its beam, `SlotPool` its rows) -> its `notify` gets the result.
"""

from dragoman_server.engine.engine import Engine
from dragoman_server.engine.messages import (
    DecodingOptions,
    Event,
    Failed,
    Finished,
    FinishReason,
    Hypothesis,
    Notify,
    Progress,
    Request,
    Timing,
)
from dragoman_server.engine.runner import Extent, Runner, RunnerLimits, SlotCopy
from dragoman_server.engine.telemetry import (
    EncodeRecord,
    EngineStats,
    FinishRecord,
    Observer,
    Outcome,
    StepRecord,
    Totals,
)

__all__ = [
    "DecodingOptions",
    "EncodeRecord",
    "Engine",
    "EngineStats",
    "Event",
    "Extent",
    "Failed",
    "FinishReason",
    "FinishRecord",
    "Finished",
    "Hypothesis",
    "Notify",
    "Observer",
    "Outcome",
    "Progress",
    "Request",
    "Runner",
    "RunnerLimits",
    "SlotCopy",
    "StepRecord",
    "Timing",
    "Totals",
]
