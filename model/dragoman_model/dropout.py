"""Dropout whose masks cost little on CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Dropout"]


class Dropout(nn.Module):
    """Zeroes elements at random while training and scales the rest up (Srivastava et al. 2014).

    torch draws CPU masks element by element from one serial generator, a quarter of a training step. Here
    each mask element takes one byte of a 64-bit draw from the same generator, so the rate is rounded to a
    multiple of 1/256 and the kept elements are scaled by the rounded rate: the expectation is exact, and
    torch's generator state alone decides the masks. Other devices use torch's own kernel.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type as `x`."""
        threshold = round(self.p * 256)
        if not self.training or threshold == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        keep = _random_bytes(x.numel()).view(x.shape) >= threshold
        return x * keep.to(x.dtype).mul_(256 / (256 - threshold))

    def extra_repr(self) -> str:
        """What `print` of the network shows."""
        return f"p={self.p}"


def _random_bytes(count: int) -> Tensor:
    words = torch.empty((count + 7) // 8, dtype=torch.int64)
    words.random_(-(2**63), None)  # the whole 64-bit range
    return words.view(torch.uint8)[:count]
