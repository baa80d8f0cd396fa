"""The two graphs of a bundle, as torch modules made of a Transformer's own layers.

`EncoderGraph` reads sources once; `DecodeStepGraph` feeds one token to each row. Their inputs and outputs,
by name, are the contract with the server's runner:

    encoder       source_ids [batch, source] int64, source_lengths [batch] int32
                  -> for every decoder layer cross_key_N, cross_value_N [batch, heads, source, head_dim]
    decode_step   token [rows, 1] int64, length [rows] int32 (tokens fed before), source_length [rows] int32,
                  target_bound, source_bound int32 scalars (at least the longest row of either side),
                  top_k [1] int64, for every layer past_self_key_N, past_self_value_N
                  [rows, heads, capacity, head_dim] and the encoder's tensors
                  -> log_prob [rows, top_k], token_id [rows, top_k], present_self_key_N, present_self_value_N

Both also run in torch, where they equal `Transformer.encode` and `Transformer.decode`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dragoman_export.operators import best, cached_attention, cross_attention, encoder_attention
from dragoman_model.attention import CrossAttention
from dragoman_model.transformer import DecoderLayer, Embedding, EncoderLayer, Transformer
from dragoman_server.state_tensor import StateTensor

__all__ = ["MASKED_LOGIT", "DecodeStepGraph", "EncoderGraph", "search_block", "state_tensors"]

MASKED_LOGIT = -1e9
"""Added to the logits of padding and start symbol, which are never a translation's next token."""

_LARGE_VOCABULARY = 4096
_BLOCKS = sorted(range(32, 129), key=lambda block: (block % 8 > 0, abs(block - 64)))
"""Sizes that suit `best`, the best ones first."""


def state_tensors(model: Transformer) -> tuple[StateTensor, ...]:
    """What the decoder keeps between steps, in the order of the graphs' inputs and outputs."""
    sizes = {"head": model.config.num_heads, "head_dim": model.config.head_dim}
    layers, parts = range(model.config.decoder_layers), ("key", "value")
    cache_axes = ("row", "head", "position", "head_dim")
    memory_axes = ("row", "head", "source_position", "head_dim")
    return (
        *(StateTensor(f"self_{part}_{i}", "kv_cache", cache_axes, sizes) for i in layers for part in parts),
        *(StateTensor(f"cross_{part}_{i}", "memory", memory_axes, sizes) for i in layers for part in parts),
    )


class EncoderGraph(nn.Module):
    """Sources to every decoder layer's cross-attention keys and values."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.encoder = model.encoder
        layers = cast(Iterable[DecoderLayer], model.decoder.layers)
        self.cross_attentions = nn.ModuleList(layer.cross_attention for layer in layers)

    def forward(self, source_ids: Tensor, source_lengths: Tensor) -> list[Tensor]:
        """Key and value of each decoder layer in turn, `[batch, heads, source, head_dim]`.

        Args:
            source_ids: `[batch, source]`, right-padded with any token.
            source_lengths: `[batch]` int32, at least 1.
        """
        last = source_lengths - 1
        bound = torch.full((), source_ids.shape[1], dtype=torch.int32)
        x = self.encoder.embedding(source_ids)
        for layer in cast(Iterable[EncoderLayer], self.encoder.layers):
            x = _encoder_layer(layer, x, last, bound)
        hidden = self.encoder.final_norm(x)
        attentions = cast(Iterable[CrossAttention], self.cross_attentions)
        return list(itertools.chain.from_iterable(attention.project(hidden) for attention in attentions))


def _encoder_layer(layer: EncoderLayer, x: Tensor, last: Tensor, bound: Tensor) -> Tensor:
    attention, residual = layer.self_attention, layer.self_attention_residual
    packed = attention.query_key_value(residual.before(x))  # [batch, source, 3 * d_model]
    attended = encoder_attention(packed, last, bound, attention.num_heads)
    x = residual.after(x, attention.output(attended))
    transformed = layer.feed_forward(layer.feed_forward_residual.before(x))
    return layer.feed_forward_residual.after(x, transformed)


class DecodeStepGraph(nn.Module):
    """One token per row to the best continuations of each row.

    Activations are `[rows, d_model]`: on matrices, the runtime adds the bias inside the product.

    Args:
        model: Whose weights to use.
        masked_ids: Tokens that must never follow: padding and start symbol.
        block: In which the best continuations are searched, see `operators.best`.
    """

    def __init__(self, model: Transformer, masked_ids: Sequence[int], block: int = 0) -> None:
        super().__init__()
        self.decoder = model.decoder
        own = model.decoder.output.bias
        bias = torch.zeros(model.config.target_vocabulary_size) if own is None else own.detach().clone()
        bias[list(masked_ids)] = MASKED_LOGIT
        self.output_bias: Tensor
        self.register_buffer("output_bias", bias)
        self.block = block

    def forward(
        self,
        token: Tensor,
        length: Tensor,
        source_length: Tensor,
        target_bound: Tensor,
        source_bound: Tensor,
        top_k: Tensor,
        caches: Sequence[Tensor],
        memories: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Feed one token; shapes as in the module's table, keys and values of each layer in turn.

        Returns:
            Log-probabilities and ids of the `top_k` best continuations, descending, and the grown caches.
        """
        x = _embed(self.decoder.embedding, token.squeeze(1), length)
        nothing = x.unsqueeze(1)[:, :0]  # [rows, 0, d_model]
        source_last = source_length - 1
        presents: list[Tensor] = []
        for i, layer in enumerate(cast(Iterable[DecoderLayer], self.decoder.layers)):
            past, memory = caches[2 * i : 2 * i + 2], memories[2 * i : 2 * i + 2]
            x, present = _self_attend(layer, x, past, length, target_bound)
            x = _cross_attend(layer, x, nothing, memory, source_last, source_bound)
            transformed = layer.feed_forward(layer.feed_forward_residual.before(x))
            x = layer.feed_forward_residual.after(x, transformed)
            presents += present
        x = self.decoder.final_norm(x)
        # The tied table stays one matrix in the file: looked up above, multiplied transposed here.
        logits = F.linear(x, self.decoder.output.weight, self.output_bias)  # [rows, vocabulary]
        log_prob, token_id = best(logits.log_softmax(dim=-1), top_k, self.block)
        return log_prob, token_id, presents


def search_block(vocabulary_size: int) -> int:
    """The block in which `best` is to search a vocabulary; 0 where that is not worth its nodes."""
    if vocabulary_size < _LARGE_VOCABULARY:
        return 0
    return next((block for block in _BLOCKS if vocabulary_size % block == 0), 0)


def _embed(embedding: Embedding, token: Tensor, position: Tensor) -> Tensor:
    tokens = cast(Tensor, embedding.tokens(token))  # [rows, d_model]
    return tokens * embedding.scale + F.embedding(position, embedding.positions)


def _self_attend(
    layer: DecoderLayer, x: Tensor, past: Sequence[Tensor], length: Tensor, bound: Tensor
) -> tuple[Tensor, Sequence[Tensor]]:
    attention, residual = layer.self_attention, layer.self_attention_residual
    packed = attention.query_key_value(residual.before(x)).unsqueeze(1)  # [rows, 1, 3 * d_model]
    attended, *present = cached_attention(packed, *past, length, bound, attention.num_heads)
    return residual.after(x, attention.output(attended.squeeze(1))), present


def _cross_attend(
    layer: DecoderLayer, x: Tensor, nothing: Tensor, memory: Sequence[Tensor], last: Tensor, bound: Tensor
) -> Tensor:
    attention, residual = layer.cross_attention, layer.cross_attention_residual
    query = attention.query(residual.before(x)).unsqueeze(1)  # [rows, 1, d_model]
    attended = cross_attention(query, nothing, *memory, last, bound, attention.num_heads)
    return residual.after(x, attention.output(attended.squeeze(1)))
