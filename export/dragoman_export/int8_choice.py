"""Which int8 a model gets: static activation scales where they are faster and cost next to nothing."""

from __future__ import annotations

import logging
import math
import statistics
import time

import numpy as np

from dragoman_server.engine.onnx_runner import OnnxRunner
from dragoman_server.engine.onnx_sessions import LoadedModel
from dragoman_server.manifest import Gate

__all__ = ["MAX_EXTRA_LOSS", "prefers_static"]

MAX_EXTRA_LOSS = 0.005
"""Mean log-probability that static scales may cost beyond row-wise ones: half a percent of perplexity."""
_MIN_SPEEDUP = 1.05
_ROWS = (2, 32)
_TOKENS = 16
_WARM, _STEPS = 3, 40

_LOGGER = logging.getLogger(__name__)


def prefers_static(
    row_wise: LoadedModel, static: LoadedModel, row_wise_gate: Gate, static_gate: Gate
) -> bool:
    """Whether the decode step is to have static scales, found by timing both here, in turns.

    Args:
        row_wise: The graphs with a scale for each row of activations.
        static: Those with fixed scales.
        row_wise_gate: What the gate found of the former.
        static_gate: And of the latter, over the same sentences.
    """
    extra_loss = static_gate.mean_log_prob_loss - row_wise_gate.mean_log_prob_loss
    speedups = {rows: _speedup(row_wise, static, rows) for rows in _ROWS}
    mean = math.prod(speedups.values()) ** (1 / len(speedups))
    chosen = static_gate.passed and extra_loss <= MAX_EXTRA_LOSS and mean >= _MIN_SPEEDUP
    _LOGGER.info(
        "static scales beside row-wise ones: %s; %+.4f nats per token: %s",
        ", ".join(f"{speedup:.2f} times as fast at {rows} rows" for rows, speedup in speedups.items()),
        extra_loss,
        "taken" if chosen else "not taken",
    )
    return chosen


def _speedup(slow: LoadedModel, fast: LoadedModel, rows: int) -> float:
    """Median time of a step of `slow` over that of `fast`."""
    runners = {"slow": OnnxRunner(slow, rows), "fast": OnnxRunner(fast, rows)}
    tokens, lengths = np.full(rows, slow.manifest.special_ids.bos), np.full(rows, _TOKENS)
    for runner in runners.values():
        runner.encode([[slow.manifest.special_ids.eos] * _TOKENS] * rows, [[row] for row in range(rows)])
    seconds: dict[str, list[float]] = {"slow": [], "fast": []}
    for _ in range(_WARM + _STEPS):
        for name, runner in runners.items():
            started = time.perf_counter()
            runner.step(tokens, lengths, top_k=2)
            seconds[name].append(time.perf_counter() - started)
    return statistics.median(seconds["slow"][_WARM:]) / statistics.median(seconds["fast"][_WARM:])
