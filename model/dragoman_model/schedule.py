"""The learning rate of Vaswani et al. 2017."""

from __future__ import annotations

__all__ = ["noam"]


def noam(step: int, d_model: int, warmup_steps: int) -> float:
    """d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5) (equation 3); steps count from 1."""
    return float(d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5))
