"""Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dragoman_model.dropout import Dropout

__all__ = ["CrossAttention", "SelfAttention", "attend", "causal_mask", "merge_heads", "split_heads"]


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Give each head its portion: `[batch, length, d_model]` to `[batch, heads, length, head_dim]`."""
    batch, length, d_model = x.shape
    return x.view(batch, length, num_heads, d_model // num_heads).transpose(
        1, 2
    )  # [batch, heads, length, head_dim]


def merge_heads(x: Tensor) -> Tensor:
    """Undo `split_heads`: `[batch, heads, length, head_dim]` to `[batch, length, d_model]`."""
    return x.transpose(1, 2).flatten(2)  # [batch, length, heads * head_dim]


def causal_mask(length: int, past: int, device: torch.device) -> Tensor:
    """True where a query may look: query `i` stands at position `past + i` and sees keys up to itself.

    Returns:
        Booleans `[length, past + length]`.
    """
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril_(past)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: Dropout) -> Tensor:
    """softmax(query @ key^T / sqrt(head_dim)) @ value (equation 1).

    On CPU the three steps are written out: the backward pass of torch's fused kernel is several times slower
    there at the lengths of sentences. Elsewhere the fused kernel runs.

    Args:
        query: `[batch, heads, queries, head_dim]`.
        key: `[batch, heads, keys, head_dim]`.
        value: `[batch, heads, keys, head_dim]`.
        mask: Booleans that broadcast to `[batch, heads, queries, keys]`; False hides a key. Every query must
            see at least one key.
        dropout: Applied to the attention weights.

    Returns:
        `[batch, heads, queries, head_dim]`.
    """
    if query.device.type != "cpu":
        p = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=p)
    affinity = (query * (1.0 / math.sqrt(query.size(-1)))) @ key.transpose(
        -2, -1
    )  # [batch, heads, queries, keys]
    if mask is not None:
        affinity = affinity.masked_fill(~mask, -torch.inf)
    weights: Tensor = dropout(affinity.softmax(dim=-1))
    return weights @ value


class SelfAttention(nn.Module):
    """Queries, keys and values from one sequence, as portions of one projection."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend within `x`, and to what came before it.

        Args:
            x: `[batch, length, d_model]`.
            mask: As in `attend`, over the past keys and those of `x`.
            past: Keys and values of earlier positions, each `[batch, heads, past, head_dim]`.

        Returns:
            The output `[batch, length, d_model]`, and all keys and values so far, each
            `[batch, heads, past + length, head_dim]`.
        """
        query, key, value = (
            split_heads(part, self.num_heads) for part in self.query_key_value(x).chunk(3, dim=-1)
        )
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        attended = attend(query, key, value, mask, self.dropout)
        return self.output(merge_heads(attended)), (key, value)


class CrossAttention(nn.Module):
    """Queries from the decoder; keys and values from the encoder's output, projected once per sentence."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.output = nn.Linear(d_model, d_model)
        self.dropout = Dropout(dropout)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[batch, heads, source, head_dim]` of encoded `[batch, source, d_model]`."""
        key, value = (split_heads(part, self.num_heads) for part in self.key_value(hidden).chunk(2, dim=-1))
        return key, value

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Look from `x` `[batch, length, d_model]` at `project`'s keys and values; same shape as `x`."""
        query = split_heads(self.query(x), self.num_heads)
        return self.output(merge_heads(attend(query, key, value, mask, self.dropout)))  # type: ignore[no-any-return]
